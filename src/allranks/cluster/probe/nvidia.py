"""NVIDIA GPUs, by nvidia-smi. Without persistence mode it takes seconds; with a wedged driver it never comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node, ToolFailed, ToolMissing
from allranks.cluster.probe.pci import NVIDIA, has_gpu_switches
from allranks.cluster.probe.processes import describe

_NO_FAULTS = (
    "gpu_idle",
    "applications_clocks_setting",
    "sync_boost",
    "display_clocks_setting",
    "display_clock_setting",
)
"""Reasons for lower clocks that somebody asked for, or that nobody needs to mend."""


def look_at_nvidia(node: Node, reporter: Reporter) -> Iterator[Found]:
    # The tool is asked even where neither bus nor driver shows a GPU: in WSL it alone knows them.
    has_gpus = _has_gpus(node)
    version = re.search(r"\s(\d{3}\.[\d.]+)\s", node.text("/proc/driver/nvidia/version") or "")
    if version:
        yield {"gpu_system": {"driver": version[1]}}
    if gpus := list(_from_proc(node)):
        yield {"gpus": gpus}  # what is known even if the tool hangs
    try:
        text = node.run("nvidia-smi", "-q", "-x")
    except ToolMissing:
        if has_gpus:
            reporter.failed("nvidia-smi is not installed")
        return
    except ToolFailed as failure:
        if has_gpus:
            reporter.failed(str(failure))
        if "</gpu>" not in failure.output:
            return
        text = failure.output  # one lost GPU makes it fail, and the others are told
    try:
        log = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        reporter.failed(f"nvidia-smi wrote what is no XML: {error}")
        return
    yield {"gpu_system": {"driver": _text(log, "driver_version"), "cuda": _text(log, "cuda_version")}}
    yield {"gpus": [_gpu(node, index, gpu, log) for index, gpu in enumerate(log.iter("gpu"))]}


def look_at_nvlinks(node: Node, reporter: Reporter) -> Iterator[Found]:
    gpus: dict[str, list[bool]] = {}
    uuid = ""
    try:
        status = node.run("nvidia-smi", "nvlink", "--status")
    except ToolFailed:  # as it does for GPUs that have no NVLink; what else it may be, the other source says
        return
    for line in status.splitlines():
        if head := re.match(r"GPU \d+:.*\(UUID: (\S+)\)", line):
            uuid = head[1]
        elif link := re.match(r"\s+Link \d+: (.+)", line):
            gpus.setdefault(uuid, []).append("inactive" not in link[1].lower())
    yield {
        "gpus": [{"uuid": name, "nvlinks": len(links), "nvlinks_active": sum(links)} for name, links in gpus.items()]
    }


def look_at_fabric_manager(node: Node, reporter: Reporter) -> Iterator[Found]:
    if has_gpu_switches(node):
        try:
            state = node.run("systemctl", "is-active", "nvidia-fabricmanager")
        except ToolMissing:  # a container
            return
        except ToolFailed as failure:  # it says by its exit code, too, that the service is not active
            state = failure.output
        if state.strip() in ("active", "inactive", "failed", "activating", "deactivating"):
            yield {"gpu_system": {"fabric_manager": state.strip()}}


def _has_gpus(node: Node) -> bool:
    devices = node.names("/sys/bus/pci/devices")
    return node.exists("/proc/driver/nvidia") or any(
        node.number(f"/sys/bus/pci/devices/{device}/vendor") == NVIDIA
        and (node.number(f"/sys/bus/pci/devices/{device}/class") or 0) >> 16 == 3
        for device in devices
    )


def _from_proc(node: Node) -> Iterator[dict[str, Any]]:
    for pci in node.names("/proc/driver/nvidia/gpus"):
        text = node.text(f"/proc/driver/nvidia/gpus/{pci}/information") or ""
        facts = {name: value.strip() for name, value in re.findall(r"^([\w ]+):\s+(.+)$", text, re.MULTILINE)}
        yield {"vendor": "nvidia", "model": facts.get("Model"), "uuid": facts.get("GPU UUID"), "pci": pci}


def _gpu(node: Node, index: int, gpu: ElementTree.Element, log: ElementTree.Element) -> dict[str, Any]:
    link = "pci/pci_gpu_link_info"
    return {
        "index": index,
        "vendor": "nvidia",
        "model": _text(gpu, "product_name"),
        "uuid": _text(gpu, "uuid"),
        "pci": _text(gpu, "pci/pci_bus_id") or gpu.get("id"),
        "memory": _bytes(gpu, "fb_memory_usage/total"),
        "used": _bytes(gpu, "fb_memory_usage/used"),
        "processes": [_process(node, entry) for entry in gpu.iterfind("processes/process_info")],
        "driver": _text(log, "driver_version"),
        "ecc_uncorrected": _ecc(gpu),
        "remapped_pending": _yes(gpu, "remapped_rows/remapped_row_pending"),
        "remapped_failed": _yes(gpu, "remapped_rows/remapped_row_failure"),
        "retired_pages_pending": _yes(gpu, "retired_pages/pending_retirement", "retired_pages/pending_blacklist"),
        "throttled": _throttled(gpu),
        "mig": _text(gpu, "mig_mode/current_mig"),
        "pcie_width": _number(gpu, f"{link}/link_widths/current_link_width"),
        "pcie_width_max": _number(gpu, f"{link}/link_widths/max_link_width"),
        "pcie_generation": _number(gpu, f"{link}/pcie_gen/current_link_gen"),
        "pcie_generation_max": _number(gpu, f"{link}/pcie_gen/max_link_gen"),
        "temperature": _number(gpu, "temperature/gpu_temp"),
        "fabric": _text(gpu, "fabric/state"),
    }


def _text(at: ElementTree.Element, path: str) -> str | None:
    """None for what this GPU or driver does not have: N/A, [N/A], Unknown Error, Requested functionality …"""
    text = (at.findtext(path) or "").strip()
    return None if not text or text.strip("[]").startswith(("N/A", "Unknown", "Requested", "Not Supported")) else text


def _number(at: ElementTree.Element, path: str) -> int | None:
    found = re.match(r"\d+", _text(at, path) or "")
    return int(found[0]) if found else None


def _bytes(at: ElementTree.Element, path: str) -> int | None:
    number = _number(at, path)
    return None if number is None else number * 2**20  # "81559 MiB"


def _yes(at: ElementTree.Element, *paths: str) -> bool | None:
    text = next((text for path in paths if (text := _text(at, path))), None)
    return None if text is None else text.lower() in ("yes", "pending")


def _ecc(gpu: ElementTree.Element) -> int | None:
    """Since the driver was loaded; names changed with Ampere and Hopper, but all uncorrectable ones say so."""
    counts = gpu.find("ecc_errors/volatile")
    if counts is None:
        return None
    total = counts.find("double_bit/total")
    if total is not None:
        return _number(counts, "double_bit/total")
    names = [entry.tag for entry in counts if "uncorrectable" in entry.tag]
    numbers = [number for name in names if (number := _number(counts, name)) is not None]
    return sum(numbers) if numbers else None


def _throttled(gpu: ElementTree.Element) -> list[str] | None:
    for head in ("clocks_event_reason", "clocks_throttle_reason"):  # the second until driver 535
        reasons = gpu.find(f"{head}s")
        if reasons is not None:
            active = [entry.tag[len(head) + 1 :] for entry in reasons if (entry.text or "").strip() == "Active"]
            return [name for name in active if name not in _NO_FAULTS]
    return None


def _process(node: Node, entry: ElementTree.Element) -> dict[str, Any]:
    """In a container the number may be one of the host, or none."""
    pid = _number(entry, "pid")
    known = describe(node, pid) if pid is not None else {}
    name = (_text(entry, "process_name") or "").split(" ")[0].rpartition("/")[2]
    return {"pid": pid, "used": _bytes(entry, "used_memory"), **known, "command": known.get("command") or name or None}
