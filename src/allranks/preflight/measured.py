"""What links and devices do against what their peers do: rates differ by some percent, so only much less counts."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from allranks.cluster.measure.values import Link, Measurements
from allranks.listing import few, si_bytes
from allranks.preflight.check import Answer, Check, Severity, Subject, found, skipped, unknown
from allranks.preflight.slow_links import FEWEST_PEERS, Expected, not_blamed, slow_links, slow_nodes
from allranks.preflight.usual import (
    not_measured,
    rest_is_well,
    scaled,
    told_rate,
    told_time,
    usual_latency,
    usual_rate,
)

# A link's share of the usual rate. Shared switches and busy hosts have been seen to halve a rate for a second.
_WARNED_SHARE, _REFUSED_SHARE = 0.4, 0.2
# TCP through one kernel does not fill faster cards: beyond it nothing is expected.
_EXPECTED_MBITS = 10_000
_SLOWER_ANSWER, _MORE_SECONDS = 10.0, 0.002


def _bandwidth(subject: Subject) -> list[Answer]:
    if (nothing := not_measured(subject)) is not None:
        return nothing
    assert subject.measured is not None
    links = subject.measured.links
    if not links:
        return [skipped(subject.nodes, "there is no other node")]
    rates = {one: one.bytes_per_second for one in links if one.bytes_per_second is not None}
    answers = [
        found((one.source, one.target), f"from {one.source} to {one.target} nothing could be measured: {one.failed}")
        for one in links
        if one.failed
    ]
    expected = _expected(subject, rates)
    shares = {one: rate / expected[one].rate for one, rate in rates.items() if expected[one].rate}
    slow = {one: _severity(share) for one, share in shares.items() if share < _WARNED_SHARE}
    answers += slow_links(subject.nodes, rates, expected, slow)
    answers += _not_known(subject, {node for one in links for node in (one.source, one.target)})
    return rest_is_well(subject, answers)


def _expected(subject: Subject, rates: Mapping[Link, float]) -> dict[Link, Expected]:
    """What a link should carry: as much as most do, and something like what its interfaces say."""
    of_all = usual_rate(len(subject.nodes), list(rates.values()))
    speeds = {
        (node, nic.name): nic.speed_mbits
        for node, report in subject.reported
        for nic in report.interfaces or ()
        if nic.speed_mbits and nic.kind not in ("veth", "virtual", "bridge", "loopback")
    }

    def of(link: Link) -> Expected:
        known = [speed for (node, name), speed in speeds.items() if node == link.source and name == link.interface]
        own = min([*known, _EXPECTED_MBITS]) * 1e6 / 8 if known else 0.0
        # Below the interface's own speed all links may be; then most tell nothing.
        return Expected(max(of_all, own))

    return {one: of(one) for one in rates}


def _severity(share: float) -> Severity:
    return "error" if share < _REFUSED_SHARE else "warning"


def _latency(subject: Subject) -> list[Answer]:
    if (nothing := not_measured(subject)) is not None:
        return nothing
    assert subject.measured is not None
    known = {one: one.latency_seconds for one in subject.measured.links if one.latency_seconds is not None}
    if not known:
        return [skipped(subject.nodes, "there is no other node")]
    if len(known) <= FEWEST_PEERS:
        return [skipped(subject.nodes, "there is no other pair of nodes to compare with")]
    usual = usual_latency(len(subject.nodes), list(known.values()))
    slow = {
        one: seconds
        for one, seconds in known.items()
        if seconds > _SLOWER_ANSWER * usual and seconds - usual > _MORE_SECONDS
    }
    told = {
        one: f"from {one.source} to {one.target} a message takes {told_time(seconds)}" for one, seconds in slow.items()
    }
    blamed = slow_nodes(subject.nodes, known, slow)
    answers = [
        found(node, f"{few([told[one] for one in own], 3, between='; ')}, where {told_time(usual)} are usual")
        for node, own in blamed.items()
    ]
    answers += [
        found((one.source, one.target), f"{told[one]}, where {told_time(usual)} are usual")
        for one in not_blamed(slow, blamed)
    ]
    answers += _not_known(subject, {node for one in known for node in (one.source, one.target)})
    return rest_is_well(subject, answers)


def _figures(subject: Subject) -> list[Answer]:
    if (nothing := not_measured(subject)) is not None:
        return nothing
    measured = subject.measured
    assert measured is not None
    parts = []
    rates = [one.bytes_per_second for one in measured.links if one.bytes_per_second is not None]
    if rates:
        parts.append(f"links carry {told_rate(median(rates))} ({told_rate(min(rates))} to {told_rate(max(rates))})")
    if latencies := [one.latency_seconds for one in measured.links if one.latency_seconds is not None]:
        parts.append(f"a message takes {told_time(median(latencies))} (up to {told_time(max(latencies))})")
    for other in measured.others:
        if rates := [one.bytes_per_second for one in other.links if one.bytes_per_second is not None]:
            over = f"{other.name} by ib_write_bw" if other.kind == "rdma" else other.name
            parts.append(f"over {over} {told_rate(median(rates))} ({told_rate(min(rates))} to {told_rate(max(rates))})")
    devices = [one for of in measured.devices.values() for one in of]
    if matmuls := [one.matmul_flops for one in devices if one.matmul_flops is not None]:
        parts.append(f"a matmul runs at {scaled(median(matmuls), 'FLOP/s')}")
    if made := [one.all_reduces[-1] for one in devices if one.all_reduces]:
        slowest = max(made, key=lambda one: one.seconds)
        bus = told_rate(slowest.bus_bytes_per_second(measured.world_size))
        size = si_bytes(slowest.num_bytes, 0, "B")
        parts.append(
            f"an all-reduce of {size} over {measured.world_size} ranks takes {told_time(slowest.seconds)} ({bus})"
        )
    if not parts:
        return [skipped(subject.nodes, "nothing was measured")]
    return [found(subject.nodes, "; ".join([*parts, *filter(None, [_told_share(measured)])]))]


def _not_known(subject: Subject, measured: set[str]) -> list[Answer]:
    missing = [node for node in subject.nodes if node not in measured]
    return [unknown(missing, "it was measured with no other node")] if missing else []


def _told_share(measured: Measurements) -> str:
    """How much of the network was looked at, where it was not all of it."""
    if measured.share_seen >= 1 or measured.skipped:
        return ""
    return (
        f"each node was measured with two others ({measured.share_seen:.1%} of all links): a slow node is found for "
        "certain, a slow link between two nodes only if those were paired"
    )


_CABLES = "Look at the cables, the switch's ports and their error counters, and at what else uses the link"
_RETRIED = "What was slow is measured a second time, and its better time counts. "
CHECKS = (
    Check(
        "measured.bandwidth",
        "How much TCP carries between the nodes, in each direction, over the interface that ranks use",
        "Every collective goes at the pace of its slowest link: one bad cable slows all ranks.",
        _CABLES,
        "error",
        _RETRIED + "A link is held against what most carry, and against its interface's own speed, of which 10 Gbit/s "
        "are expected at most: below 40 % warns, below 20 % is an error. A node is named where all its links are slow "
        "and those of its partners are not. Virtual interfaces' speeds are not believed.",
        _bandwidth,
        quick=False,
    ),
    Check(
        "measured.latency",
        "How long a small message takes between the nodes",
        "Small collectives, such as those of the gradient's norm, wait for it in every step.",
        _CABLES,
        "warning",
        _RETRIED
        + "Ten times what is usual among the nodes, and 2 ms more; with two nodes there is nothing to compare.",
        _latency,
        quick=False,
    ),
    Check(
        "measured.figures",
        "What was measured, in one line",
        "For comparing with what the machines are sold as.",
        "Nothing is to be done",
        "note",
        "A note.",
        _figures,
        quick=False,
    ),
)
