"""The links of one transport, measured slot by slot: what looks slow is measured a second time, and its better time
counts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from allranks.cluster.measure.children import number
from allranks.cluster.measure.schedule import (
    ALL_PAIRS_UP_TO,
    Pair,
    first_rounds,
    second_rounds,
    share_seen,
    to_measure,
)
from allranks.cluster.measure.tcp import Measured
from allranks.cluster.measure.values import Link
from allranks.errors import RefusedError
from allranks.listing import printable
from allranks.preflight.usual import usual_rate
from allranks.rendezvous import Rendezvous

MOST_ADDRESSES = 4
ROUND_SECONDS = 60.0
"""For what takes milliseconds, on nodes that are busy with something else."""
_MOST_ROUNDS = 64


class Transport(Protocol):
    """How this node measures over one transport. `name` and `nodes`, who take part, are the same on all nodes."""

    kind: Literal["tcp", "rdma"]
    name: str
    nodes: Sequence[int]
    seconds: float
    """At most for one slot."""
    slow_below: float
    """Of the usual rate, or of `expected`: such a link is measured a second time."""
    expected: float
    """Bytes per second that each link should carry; 0 where only others tell."""

    def measure(self, node: int) -> list[tuple[str, Measured]]:
        """From this node to another: of each interface by its name."""

    def answering(self, node: int) -> contextlib.AbstractContextManager[object]:
        """Within, the other one measures to this node."""

    def failed_to_answer(self) -> Mapping[int, str]:
        """By node, what this end said that was to answer it, where it failed."""


class Links:
    """Measures what the schedule says, slot by slot; node 0 gathers. Nodes that take no part wait for each slot."""

    def __init__(
        self, rendezvous: Rendezvous, names: Sequence[str], transport: Transport, all_pairs_up_to: int = ALL_PAIRS_UP_TO
    ) -> None:
        self._rendezvous, self._names, self._transport = rendezvous, names, transport
        self._own = (
            transport.nodes.index(rendezvous.own.node_rank) if rendezvous.own.node_rank in transport.nodes else -1
        )
        self._all_pairs_up_to = all_pairs_up_to
        self._best: dict[tuple[int, int, str], Measured] = {}
        self._measured: set[Pair] = set()
        self._slot = 0

    @property
    def share(self) -> float:
        """The part of all links that were measured."""
        return share_seen(len(self._transport.nodes), self._measured) if len(self._transport.nodes) > 1 else 1.0

    def measure_all(self) -> None:
        num_nodes, up_to = len(self._transport.nodes), self._all_pairs_up_to
        for pairs in first_rounds(num_nodes, up_to):
            self._measure(pairs)
        for pairs in self._agreed("second round", lambda: second_rounds(num_nodes, self._slow(), up_to)):
            self._measure(pairs)
        for pairs in self._agreed("again", lambda: _disjoint(self._slow())):
            self._measure(pairs)
        if self._transport.kind == "rdma":
            self._hear_the_other_ends()

    def best(self) -> list[Link]:
        """Of each link the better of its measurements, in the order of the nodes; on node 0."""
        return [
            Link(
                self._names[self._transport.nodes[source]],
                self._names[self._transport.nodes[target]],
                interface,
                one.latency_seconds,
                one.bytes_per_second,
                one.failed,
            )
            for (source, target, interface), one in sorted(self._best.items())
        ]

    def _slow(self) -> list[Pair]:
        rates = [one.bytes_per_second for one in self._best.values() if one.bytes_per_second is not None]
        usual = max(usual_rate(len(self._transport.nodes), rates), self._transport.expected)
        slow = {
            (min(source, target), max(source, target))
            for (source, target, _), one in self._best.items()
            if one.bytes_per_second is None or one.bytes_per_second < self._transport.slow_below * usual
        }
        return sorted(slow)

    def _hear_the_other_ends(self) -> None:
        """Why a link failed, where the end that was to answer knows: who measures hears only that nobody is there."""

        def decide(said: Sequence[Any]) -> object:
            for target, node in enumerate(self._transport.nodes):
                for one in items(said[node])[: len(self._transport.nodes)]:
                    if isinstance(one, list) and len(one) == 2:
                        self._take_why(one[0], target, printable(one[1], 200))
            return None

        own = self._transport.failed_to_answer() if self._own >= 0 else {}
        told = [[self._transport.nodes.index(node), words] for node, words in own.items()]
        self._rendezvous.round(f"measure: {self._transport.name}: why", told, ROUND_SECONDS, decide=decide)

    def _take_why(self, source: object, target: int, words: str) -> None:
        for key, one in self._best.items():
            if key[:2] == (source, target) and one.failed:
                there = self._names[self._transport.nodes[target]]
                self._best[key] = replace(one, failed=f"{one.failed}; on {there} {words}")

    def _agreed(self, name: str, choose: Callable[[], Sequence[Sequence[Pair]]]) -> list[list[Pair]]:
        """The rounds that node 0 chooses, on all nodes."""

        def decide(said: Sequence[Any]) -> object:
            return [[list(pair) for pair in pairs] for pairs in choose()]

        chosen = self._rendezvous.round(f"measure: {self._transport.name}: {name}", None, ROUND_SECONDS, decide=decide)
        return [_pairs(pairs, len(self._transport.nodes)) for pairs in items(chosen)[:_MOST_ROUNDS]]

    def _measure(self, pairs: Sequence[Pair]) -> None:
        self._measured.update(pairs)
        for work in to_measure([pairs], self._own):
            other = None if work is None else self._transport.nodes[work[0]]
            is_sender = work is not None and work[1]
            with contextlib.nullcontext() if other is None or is_sender else self._transport.answering(other):
                told = self._transport.measure(other) if other is not None and is_sender else []
                self._slot += 1
                self._rendezvous.round(
                    f"measure: {self._transport.name}: slot {self._slot}",
                    [_told(work[0], interface, one) for interface, one in told] if work is not None else [],
                    ROUND_SECONDS + self._transport.seconds,
                    decide=self._take,
                )

    def _take(self, said: Sequence[Any]) -> object:
        for source, node in enumerate(self._transport.nodes):
            for one in items(said[node])[:MOST_ADDRESSES]:
                if not isinstance(one, list) or len(one) != 5 or one[0] not in range(len(self._transport.nodes)):
                    continue
                key = (source, one[0], printable(one[1], 64))
                new = Measured(number(one[2]), number(one[3]), printable(one[4] or "", 200))
                before = self._best.get(key)
                self._best[key] = new if before is None else _better(before, new)
        return None


def _told(target: int, interface: str, one: Measured) -> list[Any]:
    return [target, interface, one.latency_seconds, one.bytes_per_second, one.failed]


def _better(one: Measured, other: Measured) -> Measured:
    """What a link has shown that it can do."""
    if one.failed or other.failed:
        return other if one.failed else one
    latencies = [each.latency_seconds for each in (one, other) if each.latency_seconds is not None]
    rates = [each.bytes_per_second for each in (one, other) if each.bytes_per_second is not None]
    return Measured(min(latencies, default=None), max(rates, default=None))


def _disjoint(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs in as few rounds as a first fit finds, each node in one pair of a round."""
    rounds: list[list[Pair]] = []
    for pair in pairs:
        fitting = next((one for one in rounds if not {n for p in one for n in p} & set(pair)), None)
        if fitting is None:
            rounds.append([pair])
        else:
            fitting.append(pair)
    return rounds


def _pairs(said: object, num_nodes: int) -> list[Pair]:
    """Raises RefusedError for what is none: it comes from the wire."""
    try:
        pairs = [(int(a), int(b)) for a, b in said]  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise RefusedError(f"node 0 does not say which nodes are to be measured: {error!r}") from None
    nodes = [node for pair in pairs for node in pair]
    if len(set(nodes)) != len(nodes) or not all(0 <= node < num_nodes for node in nodes):
        raise RefusedError("node 0 wants nodes to be measured that there are not")
    return pairs


def items(said: object) -> list[Any]:
    return said if isinstance(said, list) else []
