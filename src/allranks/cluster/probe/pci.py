"""What the PCI bus shows, whatever drivers say: how many GPUs there are, and if their traffic is redirected."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node

NVIDIA, AMD = 0x10DE, 0x1002
# Base class and subclass: VGA, 3D and other display controllers, processing accelerators (PCI code and ID assignment).
_GPUS = {NVIDIA: (0x0300, 0x0302), AMD: (0x0300, 0x0302, 0x0380, 0x1200)}
_BRIDGE, _SWITCH_OF_GPUS = 0x0604, 0x0680
_ACS = 0x000D  # the extended capability's number; its control register follows 6 bytes after its head
_REDIRECTING = 0x1 | 0x4 | 0x8 | 0x10  # source validation, request and completion redirect, upstream forwarding


def look_at_pci(node: Node, reporter: Reporter) -> Iterator[Found]:
    devices = node.names("/sys/bus/pci/devices")
    gpus = [device for device in devices if is_gpu(node, device)]
    nodes = [name for name in node.names("/dev") if name.startswith("nvidia") and name[6:].isdigit()]
    renders = [name for name in node.names("/dev/dri") if name.startswith("renderD")]
    is_nvidia = any(_number(node, device, "vendor") == NVIDIA for device in gpus)
    yield {
        "gpu_system": {
            "num_present": len(gpus) if node.exists("/sys/bus/pci") else None,
            "num_device_nodes": len(nodes if is_nvidia else renders) if gpus else None,
            "visible": next((node.environment[name] for name in _VISIBLE if name in node.environment), None),
            "nvidia_peermem": _has_peermem(node) if is_nvidia else None,
        }
    }
    if not gpus and node.exists("/sys/bus/pci"):
        yield {"gpus": []}
    if gpus:
        is_on = _redirects(node, devices)
        if is_on is None:
            reporter.withheld("gpu_system.acs", "root alone reads whether PCI bridges redirect traffic between devices")
        yield {"gpu_system": {"acs": is_on}}


_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def is_gpu(node: Node, device: str) -> bool:
    vendor = _number(node, device, "vendor")
    return (_number(node, device, "class") >> 8) in _GPUS.get(vendor, ())


def has_gpu_switches(node: Node) -> bool:
    """Whether the GPUs of this node are joined by NVSwitches, which a fabric manager must set up."""
    return any(
        _number(node, device, "vendor") == NVIDIA and _number(node, device, "class") >> 8 == _SWITCH_OF_GPUS
        for device in node.names("/sys/bus/pci/devices")
    )


def _number(node: Node, device: str, name: str) -> int:
    return node.number(f"/sys/bus/pci/devices/{device}/{name}") or 0


def _has_peermem(node: Node) -> bool:
    return node.exists("/sys/module/nvidia_peermem") or node.exists("/sys/module/nv_peer_mem")


def _redirects(node: Node, devices: list[str]) -> bool | None:
    """Whether any bridge does; None where their registers cannot be read, which takes root."""
    known = None
    for device in devices:
        if _number(node, device, "class") >> 8 == _BRIDGE:
            try:
                registers = node.bytes(f"/sys/bus/pci/devices/{device}/config")
            except OSError:
                continue
            if len(registers) <= 0x100:  # an ordinary user gets the first 64 bytes; an old bus has no more than 256
                continue
            known = known or bool(_acs_control(registers) & _REDIRECTING)
    return known


def _acs_control(registers: bytes) -> int:
    """The list of extended capabilities begins at 0x100: number, version, and where the next one is."""
    at = 0x100
    for _ in range(len(registers)):
        if at < 0x100 or at + 8 > len(registers):
            return 0
        (head,) = struct.unpack_from("<I", registers, at)
        if head & 0xFFFF == _ACS:
            return int(struct.unpack_from("<H", registers, at + 6)[0])
        at = head >> 20
    return 0
