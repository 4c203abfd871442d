"""What was measured of the nodes together, as the checks take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from allranks.cluster.measure.children import DeviceMeasured


@dataclass(frozen=True)
class Link:
    """One direction between two nodes, by their names. `interface` is that of `source`: of the network, or an adapter's
    port."""

    source: str
    target: str
    interface: str = ""
    latency_seconds: float | None = None
    bytes_per_second: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class TransportMeasured:
    """One way between nodes beside the TCP of the ranks, measured by itself: TCP over another network that they share
    (`name` is the network), or one adapter of each (`name` is the port, as `mlx5_0:1`). `skipped`: why it was not."""

    kind: Literal["tcp", "rdma"]
    name: str
    links: Sequence[Link] = ()
    share_seen: float = 1.0
    skipped: str = ""


@dataclass(frozen=True)
class Measurements:
    """All of it; a part is empty where it was not measured, and `skipped` says why.

    `links` are of the TCP that the ranks use; those of a pair that was tried twice are of its better time.
    `step_seconds`: how long a step of this config took in an earlier run, and `crossing_bytes` what each node sent to
    others in it, by the run's own count.
    """

    links: Sequence[Link] = ()
    devices: Mapping[str, Sequence[DeviceMeasured]] = field(default_factory=dict)
    world_size: int = 0
    """Of the all-reduces; 0 where none was made."""
    skipped: str = ""
    share_seen: float = 1.0
    """The part of all links between two nodes that was measured."""
    others: Sequence[TransportMeasured] = ()
    """What else joins the nodes, whether the ranks use it or not."""
    without_rdma: Mapping[str, str] = field(default_factory=dict)
    """Nodes whose adapters could not be measured, and why."""
    step_seconds: float | None = None
    crossing_bytes: float | None = None
