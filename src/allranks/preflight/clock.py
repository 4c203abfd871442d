"""Do the nodes' clocks agree?"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median_low

from allranks.cluster.node_report import NodeReport
from allranks.preflight.check import Answer, Check, ClockOffset, Subject, found, ok, skipped, unknown
from allranks.preflight.looking import NO_REPORT, each_node

# A clock that is kept (chrony, ntpd, PTP, a hypervisor's) is off by milliseconds, by some hundred after a start.
_WARNED_SECONDS, _REFUSED_SECONDS = 2.0, 30.0
# Where a node's time is known from its report only: those of one gathering end within this of each other.
_OF_REPORTS = ClockOffset(0.0, within=60.0)


def _spread(subject: Subject) -> list[Answer]:
    offsets = _offsets(subject)
    answers = [
        unknown(node, "its clock is not known" if subject.reports[node] else NO_REPORT)
        for node in subject.nodes
        if node not in offsets
    ]
    if len(subject.nodes) == 1:
        return [*answers, skipped(offsets, "there is no other node")]
    if len(offsets) < 2:
        return [*answers, unknown(offsets, "of no other node it is known")]
    usual = median_low(one.seconds for one in offsets.values())
    off = [node for node in offsets if _beyond(offsets[node], usual) > _WARNED_SECONDS]
    near = [node for node in offsets if node not in off]
    if off and len(near) <= len(off):
        return [*answers, _no_majority(subject, offsets)]
    return [*answers, ok(*near), *(_deviating(node, offsets[node], usual) for node in off)]


def _offsets(subject: Subject) -> Mapping[str, ClockOffset]:
    if subject.clocks is not None:
        return {node: subject.clocks[node] for node in subject.nodes if node in subject.clocks}
    return {
        node: ClockOffset(report.time, _OF_REPORTS.within)
        for node, report in subject.reported
        if report.time is not None
    }


def _beyond(one: ClockOffset, usual: float) -> float:
    """Seconds by which it is off for certain."""
    return abs(one.seconds - usual) - one.within


def _deviating(node: str, one: ClockOffset, usual: float) -> Answer:
    ahead = one.seconds - usual
    return found(
        node,
        f"its clock is {_told(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the others'",
        severity="error" if _beyond(one, usual) > _REFUSED_SECONDS else "warning",
    )


def _no_majority(subject: Subject, offsets: Mapping[str, ClockOffset]) -> Answer:
    first, *_, last = sorted(offsets, key=lambda node: offsets[node].seconds)
    apart = offsets[last].seconds - offsets[first].seconds
    here = {subject.starting: " (here)"}
    return found(
        offsets,
        f"the clocks are not the same: that of {last}{here.get(last, '')} is {_told(apart)} ahead of that of "
        f"{first}{here.get(first, '')}",
        severity="error" if _beyond(offsets[last], offsets[first].seconds) > _REFUSED_SECONDS else "warning",
    )


def _kept(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        kept = report.clock.synchronized
        if kept is None:
            return unknown(node, "whether its clock is kept is not known")
        if kept:
            return None
        if not any_kept:
            return skipped(node, "of no node the kernel knows that something keeps the clock right")
        return found(node, "nothing that the kernel knows of keeps its clock right")

    any_kept = any(report.clock.synchronized for _, report in subject.reported)
    return each_node(subject, look)


def _told(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"


CHECKS = (
    Check(
        "clock.spread",
        "Whether the nodes' clocks agree",
        "Times in logs and events of several nodes are compared to find who failed first, files look newer than they "
        "are, and tickets and certificates are refused.",
        "Look at `timedatectl` on the nodes named; start chrony or ntpd there, or set the clock",
        "error",
        "A node against the (lower) median of all, less the uncertainty of its reading: beyond 2 s warns, beyond 30 s "
        "is an error. Where only the reports' own times are known, 60 s more are allowed.",
        _spread,
    ),
    Check(
        "clock.kept",
        "Whether something keeps the clock right",
        "A clock that nobody keeps drifts by seconds a day.",
        "Start chrony or ntpd there (`timedatectl` shows whether one runs)",
        "note",
        "A note, and only where other nodes' clocks are kept: a hypervisor may do it unseen. clock.spread compares.",
        _kept,
    ),
)
