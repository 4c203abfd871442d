"""What each node's resolver makes of the others' names."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from allranks.cluster.interfaces import is_link_local, is_loopback
from allranks.cluster.majority import groups
from allranks.cluster.node_report import NodeReport
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Check, Severity, Subject, found, kept, ok, skipped, unknown
from allranks.preflight.effective import is_one_machine
from allranks.preflight.folding import fold
from allranks.preflight.looking import NO_REPORT

Fault = Literal["loopback", "other", "unknown", "several", "differs", "own"]
_SHOWN = 4


@dataclass(frozen=True)
class _Odd:
    """A name that means something odd on a node."""

    fault: Fault
    node: str
    text: str
    severity: Severity | None = None


def _looking(fault: Fault) -> Callable[[Subject], Iterator[Answer]]:
    def look(subject: Subject) -> Iterator[Answer]:
        asked = [node for node, report in subject.reported if report.names]
        if subject.silent:
            yield unknown(subject.silent, NO_REPORT)
        if is_one_machine(subject, subject.nodes):
            yield skipped([node for node, _ in subject.reported], "all nodes are one machine")
            return
        if not asked:
            yield skipped([node for node, _ in subject.reported], "no names of other nodes were asked for")
            return
        if not_asked := [node for node, report in subject.reported if not report.names]:
            yield unknown(not_asked, "what it makes of names is not known")
        odd = [one for one in _odd_names(subject) if one.fault == fault]
        for one in odd:
            yield found(one.node, one.text, severity=one.severity)
        named = {one.node for one in odd}
        yield ok(*(node for node in asked if node not in named))

    return look


@kept
def _odd_names(subject: Subject) -> list[_Odd]:
    return list(_look_at_all(subject))


def _look_at_all(subject: Subject) -> Iterator[_Odd]:
    """One for each name on each node at most: the worst that is to be said of it."""
    holders = _holders(subject)
    owners = {name: name for name in subject.nodes}
    owners |= {report.host: node for node, report in subject.reported if report.host and report.host not in owners}
    resolved: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for node, report in subject.reported:
        for name, addresses in (report.names or {}).items():
            plain = tuple(sorted({address.partition("%")[0] for address in addresses}))
            owner = owners.get(name)
            odd = _odd(subject, node, name, owner, plain, holders)
            if odd is not None:
                yield odd
            elif owner != node and plain:
                resolved.setdefault(name, []).append((node, plain))
    for name, values in sorted(resolved.items()):
        yield from _differing(name, values, holders, owners.get(name))


def _odd(
    subject: Subject,
    node: str,
    name: str,
    owner: str | None,
    addresses: tuple[str, ...],
    holders: dict[str, set[str]],
) -> _Odd | None:
    shown, listed = printable(name, 256), few(map(printable, addresses), _SHOWN)
    is_master = name == subject.wanted.master_addr
    if not addresses:
        severity: Severity | None = None if is_master else "note"
        return _Odd("unknown", node, f"it knows no address of {shown}", severity)
    loopback = [address for address in addresses if is_loopback(address)]
    if owner == node:
        return _Odd("own", node, f"its own name, {shown}, means {listed}") if loopback else None
    if owner is None and not is_master:
        return None
    if loopback:
        # The master's address may be a name of this node's that nobody knows as one of its own.
        own = owner is None and _others_find(subject, name, node, holders)
        return _Odd("own" if own else "loopback", node, f"{shown} means {listed} there, which is that node itself")
    if owner is None:
        return None
    if subject.reports.get(owner) is not None:
        for address in addresses:
            at = holders.get(address, set())
            if at and owner not in at:
                whose = "its own address" if node in at else f"an address of {fold(at)}"
                return _Odd("other", node, f"{shown} means {printable(address)} there, which is {whose}")
    of_a_version = [_version(address) for address in addresses if not is_link_local(address)]
    if any(of_a_version.count(version) > 1 for version in (4, 6)):
        all_its_own = all(owner in holders.get(address, ()) for address in addresses)
        severity = "note" if all_its_own else None
        return _Odd("several", node, f"{shown} means several addresses there: {listed}", severity)
    return None


def _others_find(subject: Subject, name: str, node: str, holders: dict[str, set[str]]) -> bool:
    """Whether other nodes find this one by the name."""
    return any(
        node in holders.get(address, ())
        for other, report in subject.reported
        if other != node
        for address in (report.names or {}).get(name, ())
    )


def _differing(
    name: str, values: list[tuple[str, tuple[str, ...]]], holders: dict[str, set[str]], owner: str | None
) -> Iterator[_Odd]:
    by_value = groups(values)
    usual = by_value.majority
    if usual is None:
        # Of two that differ, the one is right that means what the named node has.
        usual = next((of for of, _ in by_value.of if all(owner in holders.get(one, ()) for one in of)), None)
    for addresses, nodes in by_value.of if usual is not None else ():
        for node in nodes if addresses != usual else ():
            text = f"{printable(name, 256)} means {few(addresses, _SHOWN)} there, elsewhere {few(usual or (), _SHOWN)}"
            yield _Odd("differs", node, text)


def _holders(subject: Subject) -> dict[str, set[str]]:
    """Address -> the nodes that have it, those aside that every node has for itself."""
    held: dict[str, set[str]] = {}
    for node, report in subject.reported:
        for address in _own(report):
            if not is_loopback(address) and not is_link_local(address):
                held.setdefault(address, set()).add(node)
    return held


def _own(report: NodeReport) -> Iterator[str]:
    for nic in report.interfaces or ():
        for one in nic.addresses or ():
            if one.address:
                yield one.address.partition("%")[0]


def _version(address: str) -> int:
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        return 0


_HOSTS = "Mend /etc/hosts on the nodes named, or what else answers there (`getent hosts NAME`)"

CHECKS = (
    Check(
        "reach.name-loopback",
        "Names of other nodes that mean the node itself",
        "A node that looks for another under 127.0.0.1 or 127.0.1.1 finds itself, and waits.",
        _HOSTS + "; a line such as `127.0.1.1 NAME` may name that node's own name only",
        "error",
        "Only names of other nodes: that its own means 127.0.1.1, as Debian writes it, is a note of reach.own-name.",
        _looking("loopback"),
    ),
    Check(
        "reach.name-of-another",
        "Names that lead to another node than the one meant",
        "The ranks would connect to the wrong node, or a node to itself.",
        _HOSTS,
        "error",
        "Only where the named node has reported its addresses, and none of them is the one that its name means.",
        _looking("other"),
    ),
    Check(
        "reach.name-unknown",
        "Names that a node cannot resolve",
        "Whoever must connect by that name cannot.",
        _HOSTS,
        "error",
        "An error for the name at which the nodes meet; for others a note, as ranks find each other by address.",
        _looking("unknown"),
    ),
    Check(
        "reach.name-addresses",
        "Names with several addresses",
        "Which one is taken changes from call to call, and one of them may lead over a slow or closed network.",
        _HOSTS + ", or name the nodes by address",
        "warning",
        "Several of one IP version; a note where all are the named node's own.",
        _looking("several"),
    ),
    Check(
        "reach.name-differs",
        "Names that mean something else on one node than on most",
        "An old line in /etc/hosts: the node may reach another machine, or a network that is to be left alone.",
        _HOSTS,
        "warning",
        "Against more than half of the nodes, or where there is no majority against what the named node has. What a "
        "name means on its own node does not count.",
        _looking("differs"),
    ),
    Check(
        "reach.own-name",
        "Whether a node's own name means an address that others can use",
        "gloo offers what its host's name means; allranks tells it an interface where that is loopback.",
        "Nothing need be done for `allranks train`; for other launchers set GLOO_SOCKET_IFNAME, or mend /etc/hosts",
        "note",
        "A note only: Debian writes 127.0.1.1 for the own name, and it does no harm here.",
        _looking("own"),
    ),
)
