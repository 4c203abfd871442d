"""What was measured of the nodes together, as the checks take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from allranks.cluster.measure.children import DeviceMeasured


@dataclass(frozen=True)
class Link:
    """One direction between two nodes, by their names, over the interface that ranks of `source` will use."""

    source: str
    target: str
    interface: str = ""
    latency_seconds: float | None = None
    bytes_per_second: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Measurements:
    """All of it; a part is empty where it was not measured, and `skipped` says why.

    `links` of a pair that was tried twice are those of its better time. `step_seconds`: how long a step of this config
    took in an earlier run, and `crossing_bytes` what each node sent to others in it, by the run's own count.
    """

    links: Sequence[Link] = ()
    devices: Mapping[str, Sequence[DeviceMeasured]] = field(default_factory=dict)
    world_size: int = 0
    """Of the all-reduces; 0 where none was made."""
    skipped: str = ""
    share_seen: float = 1.0
    """The part of all links between two nodes that was measured."""
    step_seconds: float | None = None
    crossing_bytes: float | None = None
