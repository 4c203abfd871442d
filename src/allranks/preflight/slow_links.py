"""Links that carry less than they should: a node is named where it has all of them, else both ends of the link."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from allranks.cluster.measure.values import Link
from allranks.listing import few
from allranks.preflight.check import Answer, Severity, found
from allranks.preflight.usual import told_rate

FEWEST_PEERS = 2
_SHOWN = 3


@dataclass(frozen=True)
class Expected:
    """What a link should carry, in bytes per second; `why` goes on the words "of the 5 Gbit/s "."""

    rate: float
    why: str = "that are usual here"


def slow_links(
    nodes: Sequence[str],
    rates: Mapping[Link, float],
    expected: Mapping[Link, Expected],
    slow: Mapping[Link, Severity],
    *,
    over: str = "",
) -> list[Answer]:
    """What is found of the links in `slow`. `over` begins each sentence, where it is of another transport."""

    def told(link: Link) -> str:
        should, on = expected[link], f" ({link.interface})" if link.interface else ""
        return (
            f"from {link.source} to {link.target}{on} {told_rate(rates[link])} come through, "
            f"{rates[link] / should.rate:.0%} of the {told_rate(should.rate)} {should.why}"
        )

    blamed = slow_nodes(nodes, rates, slow)
    answers = []
    for node, its_links in blamed.items():
        text = f"every link that was measured of it is slow: {few(map(told, its_links), _SHOWN, between='; ')}"
        worst = min(its_links, key=lambda link: rates[link] / expected[link].rate)
        answers.append(found(node, over + text, severity=slow[worst]))
    for link in not_blamed(slow, blamed):
        answers.append(found((link.source, link.target), over + told(link), severity=slow[link]))
    return answers


def slow_nodes(nodes: Sequence[str], known: Iterable[Link], slow: Collection[Link]) -> dict[str, list[Link]]:
    """Nodes of which every pair is slow, in one direction at least, while each partner has a pair that is not."""
    pairs: dict[str, dict[str, bool]] = {node: {} for node in nodes}
    for link in known:
        for a, b in ((link.source, link.target), (link.target, link.source)):
            if a in pairs:
                pairs[a][b] = pairs[a].get(b, False) or link in slow
    quick = {node for node, of in pairs.items() if not all(of.values())}
    return {
        node: [link for link in slow if node in (link.source, link.target)]
        for node, of in pairs.items()
        if len(of) >= FEWEST_PEERS and all(of.values()) and quick.issuperset(of)
    }


def not_blamed(slow: Iterable[Link], blamed: Collection[str]) -> list[Link]:
    """Slow links of which neither end is at fault by itself."""
    return [one for one in slow if one.source not in blamed and one.target not in blamed]
