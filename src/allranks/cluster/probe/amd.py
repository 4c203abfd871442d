"""AMD GPUs: what their driver shows as files, and by rocm-smi what only it knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node, ToolFailed, ToolMissing
from allranks.cluster.probe.pci import AMD, is_gpu
from allranks.cluster.probe.processes import describe

_GENERATIONS = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}  # GT/s of a lane, PCIe 1 to 6


def look_at_amd(node: Node, reporter: Reporter) -> Iterator[Found]:
    devices = [device for device in node.names("/sys/bus/pci/devices") if _is_amd(node, device)]
    driver = node.text("/sys/module/amdgpu/version")
    if devices:
        yield {"gpu_system": {"driver": driver}}
    gpus: list[dict[str, Any]] = []
    for index, device in enumerate(devices):
        reporter.doing(device)  # some files are answers of the GPU's firmware
        gpus.append(_from_files(node, index, device, driver))
        yield {"gpus": gpus}
    try:
        told = _by_pci(node)
    except ToolMissing:
        if devices:
            reporter.failed("neither rocm-smi nor amd-smi is installed")
        return
    except ToolFailed:
        if devices:
            raise
        return
    only_told = [{"index": index, "vendor": "amd", "pci": pci} for index, pci in enumerate(told) if pci not in devices]
    if told:
        yield {"gpus": [{**gpu, **told.get(gpu["pci"], {})} for gpu in [*gpus, *only_told]]}


def look_at_amd_processes(node: Node, reporter: Reporter) -> Iterator[Found]:
    """By the driver's own files: whoever has opened its compute device, and what of each GPU's memory it holds."""
    gpus: dict[str | None, list[dict[str, Any]]] = {}
    for pid in node.names("/sys/class/kfd/kfd/proc"):
        for name in node.names(f"/sys/class/kfd/kfd/proc/{pid}"):
            used = node.number(f"/sys/class/kfd/kfd/proc/{pid}/{name}") if name.startswith("vram_") else None
            if used:
                gpus.setdefault(_pci_of(node, name[5:]), []).append({**describe(node, int(pid)), "used": used})
    if gpus:
        yield {"gpus": [{"pci": pci, "processes": processes} for pci, processes in gpus.items() if pci]}


def _is_amd(node: Node, device: str) -> bool:
    return node.number(f"/sys/bus/pci/devices/{device}/vendor") == AMD and is_gpu(node, device)


def _pci_of(node: Node, gpu_id: str) -> str | None:
    """kfd has numbers of its own, which its topology explains: location_id is bus, device and function."""
    top = "/sys/class/kfd/kfd/topology/nodes"
    for name in node.names(top):
        if node.text(f"{top}/{name}/gpu_id") == gpu_id:
            facts = dict(re.findall(r"^(\w+) (\d+)$", node.text(f"{top}/{name}/properties") or "", re.MULTILINE))
            place, domain = int(facts.get("location_id", 0)), int(facts.get("domain", 0))
            return f"{domain:04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"
    return None


def _from_files(node: Node, index: int, device: str, driver: str | None) -> dict[str, Any]:
    folder = f"/sys/bus/pci/devices/{device}"
    faults = re.search(r"^ue: (\d+)$", node.text(f"{folder}/ras/umc_err_count") or "", re.MULTILINE)
    unique = node.text(f"{folder}/unique_id")
    return {
        "index": index,
        "vendor": "amd",
        "uuid": f"0x{unique}" if unique else None,
        "pci": device,
        "memory": node.number(f"{folder}/mem_info_vram_total"),
        "used": node.number(f"{folder}/mem_info_vram_used"),
        "driver": driver,
        "ecc_uncorrected": int(faults[1]) if faults else None,
        "pcie_width": node.number(f"{folder}/current_link_width"),
        "pcie_width_max": node.number(f"{folder}/max_link_width"),
        "pcie_generation": _generation(node.text(f"{folder}/current_link_speed")),
        "pcie_generation_max": _generation(node.text(f"{folder}/max_link_speed")),
        "model": node.text(f"{folder}/product_name"),
    }


def _generation(speed: str | None) -> int | None:
    return _GENERATIONS.get((speed or "").split(" ")[0])


def _by_pci(node: Node) -> dict[str, dict[str, Any]]:
    """What the tools know besides: rocm-smi, or the one that takes its place. Raises ToolMissing and ToolFailed."""
    try:
        shown = ("--showproductname", "--showbus", "--showtemp", "--showuniqueid", "--showmeminfo", "vram")
        cards = _json(node.run("rocm-smi", *shown, "--json"))
        told = dict(map(_from_rocm_smi, filter(_is_table, cards.values())))
    except ToolMissing:
        cards = _json(node.run("amd-smi", "static", "--asic", "--bus", "--json"))
        each = cards.get("gpu_data", []) if isinstance(cards, dict) else cards  # a bare list until ROCm 6.4
        told = dict(map(_from_amd_smi, filter(_is_table, each)))
    return {pci: facts for pci, facts in told.items() if pci}


def _json(text: str) -> Any:
    """Warnings may come first."""
    return json.loads(text[min(at for at in (text.find("{"), text.find("["), len(text)) if at >= 0) :])


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _from_rocm_smi(card: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Its keys changed their capitals and words from version to version."""
    facts = {name.lower(): value for name, value in card.items()}
    names = [str(facts[name]) for name in ("card series", "device name", "card model") if facts.get(name)]
    model = min(names, key=lambda name: name.startswith("0x"), default=None)  # a number, where it knows no name
    degrees = next((str(value) for name, value in facts.items() if "sensor junction" in name), "")
    temperature = float(degrees) if re.fullmatch(r"[\d.]+", degrees) else None
    memory, used = (str(facts.get(f"vram total {word}memory (b)", "")) for word in ("", "used "))
    sizes = {"memory": int(memory) if memory.isdigit() else None, "used": int(used) if used.isdigit() else None}
    uuid = facts.get("unique id")
    return _pci(facts.get("pci bus")), _known({"model": model, "temperature": temperature, "uuid": uuid, **sizes})


def _from_amd_smi(card: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    asic, bus = (card[name] if isinstance(card.get(name), dict) else {} for name in ("asic", "bus"))
    return _pci(bus.get("bdf")), _known({"model": asic.get("market_name")})


def _pci(place: object) -> str:
    """Empty for what is none, such as a card that only says which versions there are."""
    return place.lower() if isinstance(place, str) and place != "N/A" else ""


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, "", "N/A")}
