"""What else joins the nodes, each transport judged by itself: other networks, and InfiniBand or RoCE adapters."""

from __future__ import annotations

from collections.abc import Sequence

from allranks.cluster.infiniband import data_rate
from allranks.cluster.measure.values import Link, TransportMeasured
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Check, Severity, Subject, found, skipped, unknown
from allranks.preflight.effective import port_name, why_no_infiniband
from allranks.preflight.folding import fold, natural
from allranks.preflight.ranks_interface import chosen_interfaces
from allranks.preflight.slow_links import Expected, slow_links, slow_nodes
from allranks.preflight.usual import not_measured, rest_is_well, told_rate, usual_of, usual_rate, usual_rate_of

_NETWORK_SHARE = 0.4
"""As of measured.bandwidth: shared switches and busy hosts have been seen to halve a rate for a second."""
_FASTER = 2.0
"""Than what the ranks use. Less is within what the streams of one kernel differ by from one card to another."""
_RDMA_SHARE, _RDMA_REFUSED = 0.8, 0.2
"""Of what the port or most links carry. Sound adapters write at 92 to 95 % of their rate: Azure's node health checks
want 185 of 200 and 375 of 400 Gbit/s (conf/nd96asr_v4.conf and nd96isr_h100_v5.conf at
https://github.com/Azure/azurehpc-health-checks); headers take 7 % of RoCE's packets of 1 KiB. The share is ours."""
_BY_TOOL, _OF_PORT = "by ib_write_bw over", "that its port has"
_SHOWN = 3


def _networks(subject: Subject) -> list[Answer]:
    if (nothing := not_measured(subject)) is not None:
        return nothing
    assert subject.measured is not None
    networks = [one for one in subject.measured.others if one.kind == "tcp"]
    if not networks:
        return [skipped(subject.nodes, "the nodes share no network beside the one that the ranks use")]
    answers = []
    for one in networks:
        severity: Severity = "warning" if _is_used(subject, one) else "note"
        usual, rates = Expected(usual_of(one.links)), _rates(one)
        judged = {link: severity for link, rate in rates.items() if rate < _NETWORK_SHARE * usual.rate}
        answers += _failed([one], "over", severity)
        answers += slow_links(_nodes(one), rates, dict.fromkeys(rates, usual), judged, over=f"over {one.name}, ")
    return _rest(subject, answers, networks)


def _faster(subject: Subject) -> list[Answer]:
    if (nothing := not_measured(subject)) is not None:
        return nothing
    assert subject.measured is not None
    own = usual_rate_of(subject)
    uses_rdma = [node for node, report in subject.reported if why_no_infiniband(subject, node, report) is None]
    if uses_rdma and len(uses_rdma) == len(subject.nodes):
        return [skipped(subject.nodes, "the data of all nodes goes over InfiniBand or RoCE")]
    best: TransportMeasured | None = None
    for one in subject.measured.others:
        rates = list(_rates(one).values())
        joins_all = set(_nodes(one)) >= set(subject.nodes) and len(rates) == len(one.links)
        if one.kind != "tcp" or not joins_all or _is_used(subject, one) or min(rates) <= own:
            continue
        if usual_of(one.links) > _FASTER * own > 0 and (best is None or usual_of(one.links) > usual_of(best.links)):
            best = one
    if best is None:
        return rest_is_well(subject, [])
    theirs = list(dict.fromkeys(filter(None, (_interface(best.links, node) for node in subject.nodes))))
    used = list(dict.fromkeys(filter(None, (_interface(subject.measured.links, node) for node in subject.nodes))))
    carried = _rates(best).values()
    text = (
        f"the ranks use {few(used, _SHOWN) or 'an interface'} ({told_rate(own)}), and {few(theirs, _SHOWN)} "
        f"({best.name}) carries {told_rate(usual_of(best.links))} between these nodes ({told_rate(min(carried))} to "
        f"{told_rate(max(carried))})"
    )
    value = printable(",".join(theirs), 256)
    for_gloo = "" if len(theirs) == 1 else " (gloo: GLOO_SOCKET_IFNAME on each node)"
    remedy = f"Set `network.interface: {value}`{for_gloo}, unless it is there for something else"
    return [found(subject.nodes, text, remedy=remedy)]


def _infiniband(subject: Subject) -> list[Answer]:
    if (nothing := not_measured(subject)) is not None:
        return nothing
    assert subject.measured is not None
    rails = [one for one in subject.measured.others if one.kind == "rdma"]
    # Without NCCL nothing goes over them; who has them measured all the same reads what they do.
    is_used = subject.wanted.uses_nccl

    def severity(share: float) -> Severity:
        return "note" if not is_used else "error" if share < _RDMA_REFUSED else "warning"

    answers = _failed(rails, _BY_TOOL, "warning" if is_used else "note")
    all_slow: dict[tuple[str, ...], list[tuple[str, float]]] = {}
    for one in rails:
        rates, ports = _rates(one), _ports(subject, one)
        known = [rate / ports[link] for link, rate in rates.items() if link in ports]
        usual_share = usual_rate(len(_nodes(one)), known)
        # What no link of these adapters comes near is said once, and then they are held against each other.
        if known and usual_share < _RDMA_SHARE:
            all_slow.setdefault(_nodes(one), []).append((one.name, usual_share))
            expected = {link: Expected(usual_share * ports.get(link, usual_of(one.links))) for link in rates}
        else:
            usual = Expected(usual_of(one.links))
            expected = {link: Expected(ports[link], _OF_PORT) if link in ports else usual for link in rates}
        shares = {link: rate / expected[link].rate for link, rate in rates.items()}
        judged = {link: severity(share) for link, share in shares.items() if share < _RDMA_SHARE}
        answers += slow_links(_nodes(one), rates, expected, judged, over=f"{_BY_TOOL} {one.name}, ")
    for nodes, slow in all_slow.items():
        names = few([name for name, _ in slow], _SHOWN)
        least, most = (f"{of(share for _, share in slow):.0%}" for of in (min, max))
        told = least if least == most else f"{least} to {most}"
        text = f"{_BY_TOOL} {names}, links carry {told} of the rate of their ports, as a rule"
        answers.append(found(nodes, text, severity=severity(min(share for _, share in slow))))
    reasons: dict[str, list[str]] = {}
    for node, why in subject.measured.without_rdma.items():
        if node in subject.nodes:
            reasons.setdefault(why, []).append(node)
    for why, some in reasons.items():
        answers.append(skipped(some, why if len(some) == len(subject.nodes) else f"{fold(some)}: {why}"))
    return _rest(subject, answers, rails)


def _ports(subject: Subject, rail: TransportMeasured) -> dict[Link, float]:
    """What each link's slower port can carry, in bytes of data per second, where that is known."""
    of_ports = {
        (node, port_name(port)): data_rate(port.rate_gbits, port.link_layer)
        for node, report in subject.reported
        for port in report.infiniband or ()
        if port.rate_gbits
    }
    ends = {link: [of_ports.get((node, link.interface)) for node in (link.source, link.target)] for link in rail.links}
    return {link: min(one for one in both if one) for link, both in ends.items() if any(both)}


def _nodes(one: TransportMeasured) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node for link in one.links for node in (link.source, link.target)))


def _rates(one: TransportMeasured) -> dict[Link, float]:
    return {link: link.bytes_per_second for link in one.links if link.bytes_per_second is not None}


def _failed(transports: Sequence[TransportMeasured], over: str, severity: Severity) -> list[Answer]:
    """Over what nothing came, once for each reason: what fails on a node fails on all of its adapters and links."""
    reasons: dict[str, list[tuple[str, Link]]] = {}
    blamed: set[str] = set()
    for one in transports:
        failed = [link for link in one.links if link.failed]
        blamed |= set(slow_nodes(_nodes(one), one.links, failed))
        for link in failed:
            reasons.setdefault(link.failed, []).append((one.name, link))
    answers = []
    for reason, which in reasons.items():
        names = few(dict.fromkeys(name for name, _ in which), _SHOWN)
        pairs = few(dict.fromkeys(f"from {link.source} to {link.target}" for _, link in which), _SHOWN)
        ends = [{link.source, link.target} for _, link in which]
        nodes = {node for both in ends for node in (both & blamed or both)}
        text = f"{over} {names}, nothing could be measured {pairs}: {reason}"
        answers.append(found(sorted(nodes, key=natural), text, severity=severity))
    return answers


def _rest(subject: Subject, answers: list[Answer], transports: Sequence[TransportMeasured]) -> list[Answer]:
    """With the nodes of which nothing was found: well where they were measured, and skipped where they were not."""
    measured = {node for one in transports for link in one.links for node in (link.source, link.target)}
    said = {node for answer in answers for node in answer.nodes}
    missing = [node for node in subject.nodes if node not in measured and node not in said]
    if late := [one.skipped for one in transports if one.skipped]:
        return rest_is_well(subject, [*answers, *([unknown(missing, late[0])] if missing else [])])
    none = [skipped(missing, "no other node could be measured with it")] if missing else []
    return rest_is_well(subject, [*answers, *none])


def _is_used(subject: Subject, one: TransportMeasured) -> bool:
    """Whether NCCL will send over it too: over sockets it takes all interfaces that are selected."""
    if not subject.wanted.uses_nccl:
        return False
    for node, report in subject.reported:
        by = chosen_interfaces(subject)[node]
        names = {nic.name for nic in by[1]} if by is not None else set()
        if _interface(one.links, node) in names and why_no_infiniband(subject, node, report) is not None:
            return True
    return False


def _interface(links: Sequence[Link], node: str) -> str:
    return next((one.interface for one in links if one.source == node), "")


CHECKS = (
    Check(
        "measured.networks",
        "How much TCP carries over each other network that several nodes share",
        "A bad cable there slows data, checkpoints and whatever else goes over it; NCCL over sockets takes all "
        "interfaces that are selected.",
        "Look at the cable, the switch's port and `ethtool` of that interface on the node named",
        "warning",
        "What was slow is measured a second time, and its better time counts. A link is held against what most of the "
        "same network carry: below 40 % is told, and warns only where NCCL will use that interface too. Bridges "
        "and management cards are left out, and interfaces that share a network with the one of the ranks.",
        _networks,
        quick=False,
    ),
    Check(
        "measured.faster-network",
        "Whether another network between all nodes carries much more than the one that the ranks use",
        "All gradients go through the slower one, and the faster card stands idle.",
        "Set network.interface to the faster one",
        "warning",
        "Only one that joins all nodes, carries twice what the ranks' own does, and of which no link failed or is "
        "slower than that. Skipped where the data goes over InfiniBand or RoCE.",
        _faster,
        quick=False,
    ),
    Check(
        "measured.infiniband",
        "How much each InfiniBand or RoCE adapter writes to that of the same name on other nodes (ib_write_bw)",
        "NCCL sends over all of them at once, and waits for the slowest.",
        "Look at the cable, the switch's port, the adapter's PCIe width (`lspci -vv`) and, for RoCE, its MTU; by hand: "
        "`ib_write_bw -d ADAPTER --report_gbits -F` on one node and the same with its address on the other",
        "error",
        "What was slow is measured a second time, and its better time counts. Below 80 % of the port's rate, or of "
        "what most links of that adapter carry, warns (sound ones write at 92 to 95 %), below 20 % is an error; where "
        "the run does not use NCCL both are notes. Without ib_write_bw (package perftest) on a node, or an active port "
        "that NCCL_IB_HCA selects, it is skipped. That the program fails only warns: that need not be the fabric's "
        "fault. Not measured on hardware.",
        _infiniband,
        quick=False,
        recorded=True,
    ),
)
