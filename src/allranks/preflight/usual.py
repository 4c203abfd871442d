"""What a link between the nodes does as a rule."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from allranks.preflight.check import Subject

_FEW_NODES, _OF_FEW = 4, 0.7


def usual_rate_of(subject: Subject) -> float:
    """In bytes per second; 0 where nothing was measured."""
    links = subject.measured.links if subject.measured else ()
    return usual_rate(len(subject.nodes), [one.bytes_per_second for one in links if one.bytes_per_second is not None])


def usual_rate(num_nodes: int, rates: Sequence[float]) -> float:
    """The median; but one slow node slows half of the links among four nodes, and more among three."""
    if not rates:
        return 0.0
    return median(rates) if num_nodes > _FEW_NODES else sorted(rates)[int(_OF_FEW * len(rates))]


def usual_latency(num_nodes: int, seconds: Sequence[float]) -> float:
    """The same of the time that a message takes; 0 where none is known."""
    if not seconds:
        return 0.0
    return median(seconds) if num_nodes > _FEW_NODES else sorted(seconds)[int((1 - _OF_FEW) * len(seconds))]
