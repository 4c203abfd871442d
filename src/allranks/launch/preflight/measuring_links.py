"""All links between the nodes, measured slot by slot: what looks slow is measured a second time, and its better time
counts."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Any

from allranks.cluster.measure.children import number
from allranks.cluster.measure.schedule import Pair, first_rounds, second_rounds, share_seen, to_measure
from allranks.cluster.measure.tcp import LINK_SECONDS, Measured, measure
from allranks.cluster.measure.values import Link
from allranks.cluster.pairs import Target
from allranks.cluster.rank_addresses import RankAddress
from allranks.errors import RefusedError
from allranks.listing import printable
from allranks.preflight.usual import usual_rate
from allranks.rendezvous import Rendezvous

MOST_ADDRESSES = 4
_ROUND_SECONDS = 60.0
"""For what takes milliseconds, on nodes that are busy with something else."""
_MOST_ROUNDS = 64
AGAIN_BELOW = 0.6
"""Of the usual rate: such a link is measured a second time."""


class Links:
    """Measures what the schedule says, slot by slot; node 0 gathers."""

    def __init__(
        self, rendezvous: Rendezvous, names: Sequence[str], own: Sequence[RankAddress], offers: Sequence[Any]
    ) -> None:
        self._rendezvous, self._names, self._own = rendezvous, names, own
        self._targets = [_targets(node, offer, rendezvous.terms.token) for node, offer in enumerate(offers)]
        self._best: dict[tuple[int, int, str], Measured] = {}
        self._measured: set[Pair] = set()
        self._slot = 0

    @property
    def share(self) -> float:
        """The part of all links that were measured."""
        return share_seen(len(self._names), self._measured) if len(self._names) > 1 else 1.0

    def measure_all(self) -> None:
        for pairs in first_rounds(len(self._names)):
            self._measure(pairs)
        for pairs in self._agreed("measure: second round", lambda: second_rounds(len(self._names), self._slow())):
            self._measure(pairs)
        for pairs in self._agreed("measure: again", lambda: _disjoint(self._slow())):
            self._measure(pairs)

    def best(self) -> list[Link]:
        """Of each link the better of its measurements, in the order of the nodes; on node 0."""
        return [
            Link(
                self._names[source],
                self._names[target],
                interface,
                one.latency_seconds,
                one.bytes_per_second,
                one.failed,
            )
            for (source, target, interface), one in sorted(self._best.items())
        ]

    def _slow(self) -> list[Pair]:
        rates = [one.bytes_per_second for one in self._best.values() if one.bytes_per_second is not None]
        usual = usual_rate(len(self._names), rates)
        slow = {
            (min(source, target), max(source, target))
            for (source, target, _), one in self._best.items()
            if one.bytes_per_second is None or one.bytes_per_second < AGAIN_BELOW * usual
        }
        return sorted(slow)

    def _agreed(self, name: str, choose: Callable[[], Sequence[Sequence[Pair]]]) -> list[list[Pair]]:
        """The rounds that node 0 chooses, on all nodes."""

        def decide(said: Sequence[Any]) -> object:
            return [[list(pair) for pair in pairs] for pairs in choose()]

        chosen = self._rendezvous.round(name, None, _ROUND_SECONDS, decide=decide)
        return [_pairs(pairs, len(self._names)) for pairs in items(chosen)[:_MOST_ROUNDS]]

    def _measure(self, pairs: Sequence[Pair]) -> None:
        self._measured.update(pairs)
        for work in to_measure([pairs], self._rendezvous.own.node_rank):
            told = [] if work is None or not work[1] else self._measure_to(work[0])
            self._slot += 1
            seconds = _ROUND_SECONDS + LINK_SECONDS * MOST_ADDRESSES
            self._rendezvous.round(f"measure: slot {self._slot}", told, seconds, decide=self._take)

    def _measure_to(self, node: int) -> list[Any]:
        """Over each interface that both ends use for the same."""
        found = []
        for library, target in self._targets[node].items():
            source = next((one for one in self._own if one.library == library), None)
            if source is not None:
                one = measure(target, source.address)
                found.append([node, source.interface, one.latency_seconds, one.bytes_per_second, one.failed])
        return found

    def _take(self, said: Sequence[Any]) -> object:
        for source, told in enumerate(said):
            for one in items(told)[:MOST_ADDRESSES]:
                if not isinstance(one, list) or len(one) != 5 or one[0] not in range(len(self._names)):
                    continue
                key = (source, one[0], printable(one[1], 64))
                new = Measured(number(one[2]), number(one[3]), printable(one[4] or "", 200))
                before = self._best.get(key)
                self._best[key] = new if before is None else _better(before, new)
        return None


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


def _targets(node: int, offer: Any, token: str) -> dict[str, Target]:
    """Where to measure to, by what its ranks use that address for: it comes from the wire."""
    targets = {}
    try:
        secret = secret_of(token, str(offer["nonce"]))
        for one in offer["at"][:MOST_ADDRESSES]:
            targets[printable(one["library"], 64)] = Target(node, str(one["address"]), int(one["port"]), secret)
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"node {node} does not say where it is to be measured: {error!r}") from None
    return targets


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


def secret_of(token: str, nonce: str) -> bytes:
    """Known to the nodes only, as that of the connections that were tried."""
    return hmac.new(token.encode(), b"measure " + nonce.encode(), hashlib.sha256).digest()
