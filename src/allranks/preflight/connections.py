"""Do the nodes reach each other, on ports that their ranks will use and with large packets?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from allranks.cluster.pairs import MESSAGE_BYTES, PAIR_SECONDS, Unreached
from allranks.doctor.pairs import at, remedies
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Check, Pairs, Subject, found, ok, skipped, unknown
from allranks.preflight.folding import fold
from allranks.preflight.looking import NO_REPORT

_SHOWN = 4


def _pairs(stages: Sequence[str]) -> Callable[[Subject], Iterator[Answer]]:
    def look(subject: Subject) -> Iterator[Answer]:
        if len(subject.nodes) == 1:
            yield skipped(subject.nodes, "there is no other node")
            return
        if subject.pairs is None:
            yield unknown(subject.silent, NO_REPORT)
            yield skipped([node for node, _ in subject.reported], "connections between nodes were not tried")
            return
        pairs = subject.pairs
        names = [place.name for place in pairs.places]
        failed = [
            (source, one)
            for source, one in pairs.unreached
            if one.stage in stages and 0 <= source < len(names) and 0 <= one.node < len(names)
        ]
        blamed = to_blame({(source, one.node) for source, one in failed})
        for place in sorted(blamed):
            yield _unreached(pairs, place, failed)
        left = {name for place, name in enumerate(names) if place not in blamed}
        yield ok(*(node for node in subject.nodes if node in left))
        yield unknown([node for node in subject.nodes if node not in names], "connections to it were not tried")

    return look


def to_blame(failed: set[tuple[int, int]]) -> set[int]:
    """The nodes that explain who does not reach whom: those in most failures, then of the rest again.

    Both ends, where nothing says which of them it is.
    """
    left, blamed = set(failed), set()
    while left:
        count: dict[int, int] = {}
        for pair in left:
            for place in pair:
                count[place] = count.get(place, 0) + 1
        most = max(count.values())
        worst = {place for place, number in count.items() if number == most}
        blamed |= worst
        left = {pair for pair in left if not worst & set(pair)}
    return blamed


def _unreached(pairs: Pairs, place: int, failed: Sequence[tuple[int, Unreached]]) -> Answer:
    places = pairs.places
    of_it = [(source, one) for source, one in failed if place in (source, one.node)]
    inward = sorted({source for source, one in of_it if one.node == place})
    outward = sorted({one.node for source, one in of_it if source == place})
    parts = []
    if inward:
        parts.append(f"not reached by {fold(places[source].name for source in inward)}")
    if outward:
        parts.append(f"does not reach {fold(places[target].name for target in outward)}")
    reasons: dict[str, None] = {}
    for source, one in of_it:
        size = f", a message of {MESSAGE_BYTES // 1024} KiB" if one.stage == "message" else ""
        reasons[f"{places[source].name} to {at(places, one)}{size}: {printable(one.reason, 256)}"] = None
    shown = few(reasons, _SHOWN, between="\n", rest="\nand {:,} more").splitlines()
    return found(places[place].name, ", and ".join(parts), evidence=shown, remedy="\n".join(remedies(places, of_it)))


CHECKS = (
    Check(
        "reach.pairs",
        "Whether each node connects to each other, on a port of the range that the ranks will use",
        "The nodes meet on one open port, and then their ranks wait for each other on closed ones until a deadline "
        "passes.",
        "Open the ports named between the nodes of the run",
        "error",
        f"A lost packet is sent again for {PAIR_SECONDS:.0f} s before a connection counts as failed. Nodes in most of "
        "the failures are named; both ends, where nothing says which.",
        _pairs(("connect", "greet")),
    ),
    Check(
        "reach.pairs-large",
        "Whether large packets arrive",
        "With a smaller MTU somewhere on the way the nodes connect, and hang at the first gradients.",
        "Set the same MTU on all nodes and switches in between",
        "error",
        f"By {MESSAGE_BYTES // 1024} KiB each way over a connection that stands; lost packets are sent again for "
        f"{PAIR_SECONDS:.0f} s.",
        _pairs(("message",)),
    ),
)
