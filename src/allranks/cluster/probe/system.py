"""The machine itself: its system, processors, memory and the limits that hold for a process here."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node

_UNLIMITED = 2**60  # cgroup v1 says "none" by a number near 2**63
_TIMEX_BYTES, _TIME_ERROR = 512, 5  # more than struct timex has; the clock is not synchronized
_CONTAINERS = ("docker", "kubepods", "containerd", "libpod", "lxc", "crio")


def look_at_system(node: Node, reporter: Reporter) -> Iterator[Found]:
    release = dict(line.partition("=")[::2] for line in (node.text("/etc/os-release") or "").splitlines())
    yield {
        "host": node.host(),
        "uid": os.getuid() if node.is_live else node.recorded.get("uid"),
        "system": {
            "kernel": os.uname().release if node.is_live else node.text("/proc/sys/kernel/osrelease"),
            "os": release.get("PRETTY_NAME", "").strip("\"'") or None,
            "machine": os.uname().machine if node.is_live else node.recorded.get("machine"),
            "container": _container(node),
            "boot_id": node.text("/proc/sys/kernel/random/boot_id"),
        },
    }
    yield {"cpu": _cpu(node), "memory": _memory(node), "limits": _limits(node)}


def look_at_clock(node: Node, reporter: Reporter) -> Iterator[Found]:
    """Whether something keeps it right, as the kernel knows it (adjtimex(2))."""
    if node.is_live:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
        yield {"clock": {"synchronized": state != _TIME_ERROR if state >= 0 else None}}
    else:
        yield {"clock": {"synchronized": node.recorded.get("clock_synchronized")}}


def _container(node: Node) -> str | None:
    if node.exists("/.dockerenv"):
        return "docker"
    if node.exists("/run/.containerenv"):
        return "podman"
    for variable, kind in (("APPTAINER_NAME", "apptainer"), ("SINGULARITY_NAME", "singularity")):
        if variable in node.environment:
            return kind
    if "KUBERNETES_SERVICE_HOST" in node.environment:
        return "kubernetes"
    cgroup = node.text("/proc/self/cgroup") or ""
    return next((kind for kind in _CONTAINERS if kind in cgroup), None)


def _cpu(node: Node) -> dict[str, object]:
    info = node.text("/proc/cpuinfo") or ""
    model = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", info, re.MULTILINE)
    allowed = re.search(
        r"^Cpus_allowed_list:\s*(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)$", node.text("/proc/self/status") or "", re.MULTILINE
    )
    nodes = [name for name in node.names("/sys/devices/system/node") if re.fullmatch(r"node\d+", name)]
    return {
        "model": model[1].strip() if model else None,
        "num_cores": len(re.findall(r"^processor\s*:", info, re.MULTILINE)) or None,
        "num_usable": _num_listed(allowed[1]) if allowed else None,
        "num_numa_nodes": len(nodes) or None,
        "cgroup_cores": min(_cgroup_cores(node), default=None),
    }


def _num_listed(cores: str) -> int:
    """How many are in a list such as 0-3,8."""
    total = 0
    for part in cores.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _cgroup_cores(node: Node) -> Iterator[float]:
    for folder in _cgroups(node, "cpu"):
        words = (node.text(f"{folder}/cpu.max") or "").split()
        if len(words) == 2 and words[0].isdigit() and int(words[1]):
            yield int(words[0]) / int(words[1])
        quota, period = node.number(f"{folder}/cpu.cfs_quota_us"), node.number(f"{folder}/cpu.cfs_period_us")
        if quota and period and quota > 0:
            yield quota / period


def _memory(node: Node) -> dict[str, object]:
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", node.text("/proc/meminfo") or "", re.MULTILINE))
    limits = []
    for folder in _cgroups(node, "memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            size = node.number(f"{folder}/{limit}")
            if size is not None and size < _UNLIMITED:
                limits.append((size, node.number(f"{folder}/{used}")))
    smallest, held = min(limits, key=lambda one: one[0], default=(None, None))
    return {
        "total": int(sizes["MemTotal"]) * 1024 if "MemTotal" in sizes else None,
        "available": int(sizes["MemAvailable"]) * 1024 if "MemAvailable" in sizes else None,
        "cgroup_limit": smallest,
        "cgroup_used": held,
    }


def _cgroups(node: Node, controller: str) -> Iterator[str]:
    """The cgroups of this process that may bound it, each before those above it; some need not be there.

    In a container the names are those of the host, of which only the top is to be seen.
    """
    for line in (node.text("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if not name.startswith("/") or (controllers and controller not in controllers.split(",")):
            continue
        top = PurePosixPath("/sys/fs/cgroup") / (controllers and _mounted_as(node, controllers, controller))
        for place in [PurePosixPath(name), *PurePosixPath(name).parents]:
            yield str(top / str(place).lstrip("/"))


def _mounted_as(node: Node, controllers: str, controller: str) -> str:
    """cgroup v1 mounts cpu and cpuacct together, and links neither name everywhere."""
    return controllers if node.exists(f"/sys/fs/cgroup/{controllers}") else controller


def _limits(node: Node) -> dict[str, object]:
    text = node.text("/proc/self/limits") or ""

    def soft(name: str) -> int | None:
        found = re.search(rf"^{name}\s+(\d+|unlimited)", text, re.MULTILINE)
        return None if found is None else -1 if found[1] == "unlimited" else int(found[1])

    return {"memlock": soft("Max locked memory"), "nofile": soft("Max open files"), "nproc": soft("Max processes")}
