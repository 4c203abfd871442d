"""The InfiniBand and RoCE ports of this node, as the kernel shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys/class/infiniband")
_CODED_UP_TO_GBITS = 40.0


@dataclass(frozen=True)
class Port:
    """One port of a host channel adapter. `link` is InfiniBand or Ethernet (then it is RoCE)."""

    hca: str
    number: int
    state: str
    link: str
    rate: str

    @property
    def is_active(self) -> bool:
        return self.state == "ACTIVE"

    def __str__(self) -> str:
        return f"{self.hca}:{self.number} ({', '.join(part for part in (self.link, self.rate, self.state) if part)})"


def ports(sysfs: Path = SYSFS) -> list[Port]:
    """All ports, by adapter and number; none where the node has no adapter or its driver is not loaded."""
    found = []
    for folder in sysfs.glob("*/ports/*"):
        if folder.name.isdecimal():
            state = _read(folder / "state").partition(":")[2].strip()  # "4: ACTIVE"
            link, rate = (
                _read(folder / "link_layer"),
                _read(folder / "rate").partition(" (")[0],
            )  # "200 Gb/sec (4X HDR)"
            found.append(Port(folder.parent.parent.name, int(folder.name), state, link, rate))
    return sorted(found, key=lambda port: (port.hca, port.number))


def select(pattern: str, hca: str, number: int) -> bool:
    """Whether NCCL takes this port of this adapter with NCCL_IB_HCA=`pattern`.

    A list with commas of prefixes, each with or without `:port`; `=` before the list makes them exact names, `^` before
    all takes them out. An empty list is no choice (NCCL user guide, Environment Variables; parseStringList and
    matchIfList in src/misc/socket.cc and utils.cc).
    """
    is_excluding = pattern.startswith("^")
    pattern = pattern[1:] if is_excluding else pattern
    is_exact = pattern.startswith("=")
    entries = [entry.partition(":") for entry in (pattern[1:] if is_exact else pattern).split(",")]
    named = [(name, port) for name, _, port in entries if name]
    if not named:
        return not is_excluding

    def matches(name: str, port: str) -> bool:
        is_named = hca == name if is_exact else hca.startswith(name)
        return is_named and (not port or _number(port) in (-1, number))

    return any(matches(name, port) for name, port in named) != is_excluding


def _number(text: str) -> int:
    """As C's atoi takes it."""
    match = re.match(r"\s*[-+]?\d+", text)
    return int(match[0]) if match else 0


def data_rate(gbits: float, link: str | None) -> float:
    """Bytes of data per second that a port of this rate carries; `link` as of a `Port`. InfiniBand of SDR to QDR sends
    10 bits for 8 (InfiniBand Architecture Specification, volume 2, 8b/10b)."""
    is_coded = link == "InfiniBand" and gbits <= _CODED_UP_TO_GBITS
    return gbits * 1e9 / 8 * (0.8 if is_coded else 1.0)


def listed(found: Sequence[Port]) -> str:
    """For a message: `mlx5_0:1 (InfiniBand, 200 Gb/sec, ACTIVE)`."""
    return ", ".join(map(str, found)) or f"none in {SYSFS}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
