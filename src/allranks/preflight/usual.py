"""What was measured, and what links between the nodes do as a rule: for the checks over it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from allranks.cluster.measure.values import Link
from allranks.preflight.check import Answer, Subject, ok, skipped

_FEW_NODES, _OF_FEW = 4, 0.7


def usual_rate_of(subject: Subject) -> float:
    """In bytes per second; 0 where nothing was measured."""
    return usual_of(subject.measured.links if subject.measured else ())


def usual_of(links: Sequence[Link]) -> float:
    """The same of some links."""
    nodes = {node for one in links for node in (one.source, one.target)}
    return usual_rate(len(nodes), [one.bytes_per_second for one in links if one.bytes_per_second is not None])


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


def not_measured(subject: Subject) -> list[Answer] | None:
    """Why there is nothing to look at, or None."""
    if subject.measured is None:
        return [skipped(subject.nodes, "it was not measured")]
    if subject.measured.skipped:
        return [skipped(subject.nodes, subject.measured.skipped)]
    return None


def rest_is_well(subject: Subject, answers: list[Answer]) -> list[Answer]:
    said = {node for answer in answers for node in answer.nodes}
    fine = [node for node in subject.nodes if node not in said]
    return [*answers, ok(*fine)] if fine else answers


def scaled(rate: float, unit: str) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if rate >= size:
            return f"{rate / size:.3g} {letter}{unit}"
    return f"{rate:.3g} {unit}"


def told_rate(bytes_per_second: float) -> str:
    """As networks are sold."""
    bits = 8 * bytes_per_second
    for size, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s")):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits / 1e3:.3g} kbit/s"


def told_time(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
