"""The nodes measure their links and devices together: each slot is a round, so that no two pairs share a node.

Nothing here judges but for one thing: what looks slow is measured a second time, and its better time counts.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from statistics import median
from typing import Any

from allranks.cluster.measure.child import Request
from allranks.cluster.measure.children import DeviceMeasured, measure_devices, number
from allranks.cluster.measure.schedule import Pair, first_rounds, second_rounds, share_seen, to_measure
from allranks.cluster.measure.tcp import LINK_SECONDS, Measured, Receiver, measure
from allranks.cluster.measure.values import Link, Measurements
from allranks.cluster.pairs import Target
from allranks.cluster.rank_addresses import RankAddress, rank_addresses
from allranks.errors import RefusedError
from allranks.launch.preflight.together import Preflight, node_names
from allranks.launch.spec.options import Launch
from allranks.listing import printable
from allranks.observe import RunDir, read_events
from allranks.observe.events import CommunicationEvent, StepEvent
from allranks.preflight.usual import usual_rate
from allranks.rendezvous import Rendezvous

_ROUND_SECONDS = 60.0
"""For what takes milliseconds, on nodes that are busy with something else."""
_DEVICE_SECONDS = 120.0
"""For starting PyTorch on a cold disk, a matmul and a copy, meeting, and the all-reduces."""
_MEET_SECONDS = 60.0
_MOST_ADDRESSES = 4
_SIZES = (8 * 2**10, 2**20, 32 * 2**20)
_MOST_RANKS = 512
_EARLIER_EVENTS = 300
_MOST_ROUNDS = 64
AGAIN_BELOW = 0.6
"""Of the median: such a link is measured a second time."""


def measured_together(
    rendezvous: Rendezvous, launch: Launch, variables: Mapping[str, str], preflight: Preflight, run: RunDir
) -> Measurements:
    """The same for a check, beside what an earlier run in `run` has recorded. Raises RefusedError."""
    if "measured" in preflight.policy.skip:
        skip = "the config says so (preflight.skip)"
    else:
        skip = "the report of a node is missing" if preflight.report() is None else ""
    own = rank_addresses({**os.environ, **variables}, uses_nccl=launch.num_gpus > 0, uses_gloo=True)
    found = measure_together(
        rendezvous,
        node_names(rendezvous),
        own,
        launch,
        variables,
        skip=skip,
        is_apart=bool(preflight.pairs and preflight.pairs[1]),
    )
    return _with_earlier(found, run) if rendezvous.own.node_rank == 0 else found


def _with_earlier(found: Measurements, run: RunDir) -> Measurements:
    """Beside what a run that was here before has counted and timed."""
    first = list(itertools.islice(read_events(run.events(0)), _EARLIER_EVENTS))
    sent = [
        max(one.node_sends_bytes, default=0) for one in first if isinstance(one, CommunicationEvent) and one.counted
    ]
    seconds = [one.seconds for one in first if isinstance(one, StepEvent)][1:]
    return replace(
        found, crossing_bytes=max(sent, default=0) or None, step_seconds=median(seconds) if seconds else None
    )


def measure_together(
    rendezvous: Rendezvous,
    names: Sequence[str],
    own: Sequence[RankAddress],
    launch: Launch,
    variables: Mapping[str, str],
    *,
    skip: str = "",
    is_apart: bool = False,
) -> Measurements:
    """What all nodes measured; whole on node 0, where alone it is judged. Raises RefusedError where a node is lost.

    `own` are the addresses that this node's ranks will give to others, `variables` what they get beside the
    environment. `skip`: why this node does not want it. `is_apart`, on node 0: some pairs do not reach each other.
    """
    nonce = secrets.token_hex(16)
    with closing(_Receiving(own, _secret(rendezvous.terms.token, nonce), skip)) as receiving:
        offer = {"nonce": nonce, "at": receiving.offered, "skip": receiving.skip, "master": _free_port(own)}

        def decide(all_offers: Sequence[Any]) -> object:
            reasons = [_why_not(name, said) for name, said in zip(names, all_offers, strict=True)]
            if is_apart:
                reasons.append("some nodes do not reach each other")
            return {"offers": list(all_offers), "skip": next(filter(None, reasons), "")}

        answer = rendezvous.round("measure: where", offer, _ROUND_SECONDS, decide=decide)
        answer = answer if isinstance(answer, dict) else {}
        if why := answer.get("skip"):
            return Measurements(skipped=printable(why, 300))
        offers = _list(answer.get("offers"))
        if len(offers) != len(names):
            raise RefusedError("node 0 does not say where the nodes are to be measured")
        links = _Links(rendezvous, names, own, offers)
        links.measure_all()
    devices = _measure_devices(rendezvous, names, launch, variables, offers[0])
    return replace(devices, links=links.best(), share_seen=links.share)


class _Receiving:
    """This node's end of links that others measure; `skip` where there cannot be one."""

    def __init__(self, own: Sequence[RankAddress], secret: bytes, skip: str) -> None:
        self.skip, self.offered = skip, list[dict[str, Any]]()
        self._receiver: Receiver | None = None
        if skip:
            return
        try:
            self._receiver = Receiver([one.address for one in own[:_MOST_ADDRESSES]], secret)
        except OSError as error:
            self.skip = f"it cannot listen at {', '.join(one.address for one in own)}: {error.strerror}"
            return
        self.offered = [
            {"address": one.address, "port": self._receiver.ports[one.address], "library": one.library}
            for one in own[:_MOST_ADDRESSES]
        ]

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()


class _Links:
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
        return [_pairs(pairs, len(self._names)) for pairs in _list(chosen)[:_MOST_ROUNDS]]

    def _measure(self, pairs: Sequence[Pair]) -> None:
        self._measured.update(pairs)
        for work in to_measure([pairs], self._rendezvous.own.node_rank):
            told = [] if work is None or not work[1] else self._measure_to(work[0])
            self._slot += 1
            seconds = _ROUND_SECONDS + LINK_SECONDS * _MOST_ADDRESSES
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
            for one in _list(told)[:_MOST_ADDRESSES]:
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


def _measure_devices(
    rendezvous: Rendezvous, names: Sequence[str], launch: Launch, variables: Mapping[str, str], head: Any
) -> Measurements:
    """Each device by itself, and an all-reduce between all: without GPUs one rank a node, which the links tell of."""
    on_gpus = launch.num_gpus > 0
    counts = [node.num_processes if on_gpus else 1 for node in rendezvous.nodes]
    first, world_size = sum(counts[: rendezvous.own.node_rank]), sum(counts)
    at = head.get("master") if isinstance(head, dict) else None
    address, port = (str(at[0]), int(at[1])) if isinstance(at, list) and len(at) == 2 else ("", 0)
    requests = [
        Request(
            "cuda" if on_gpus else "cpu",
            local_rank,
            first + local_rank,
            world_size,
            address,
            port if 1 < world_size <= _MOST_RANKS else 0,
            "nccl" if on_gpus else "gloo",
            _MEET_SECONDS,
            _SIZES,
        )
        for local_rank in range(counts[rendezvous.own.node_rank])
    ]
    own = measure_devices(requests, variables, _DEVICE_SECONDS)
    told = [one.to_message() for one in own]
    kept: list[Measurements] = []

    def decide(said: Sequence[Any]) -> object:
        read = {
            name: [one for each in _list(told)[:64] if (one := DeviceMeasured.from_message(each)) is not None]
            for name, told in zip(names, said, strict=True)
        }
        kept.append(Measurements(devices=read, world_size=world_size if requests[0].port else 0))
        return None

    rendezvous.round("measure: devices", told, _DEVICE_SECONDS + _ROUND_SECONDS, decide=decide)
    return kept[0] if kept else Measurements()


def _why_not(name: str, offer: Any) -> str:
    if not isinstance(offer, dict):
        return f"{name} does not say where it is to be measured"
    return f"{name}: {offer['skip']}" if offer.get("skip") else ""


def _targets(node: int, offer: Any, token: str) -> dict[str, Target]:
    """Where to measure to, by what its ranks use that address for: it comes from the wire."""
    targets = {}
    try:
        secret = _secret(token, str(offer["nonce"]))
        for one in offer["at"][:_MOST_ADDRESSES]:
            targets[printable(one["library"], 64)] = Target(node, str(one["address"]), int(one["port"]), secret)
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"node {node} does not say where it is to be measured: {error!r}") from None
    return targets


def _free_port(own: Sequence[RankAddress]) -> list[Any] | None:
    """An address and a port of this node that was free just now, for the store of the measuring ranks."""
    if not own:
        return None
    address = own[0].address
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as opened:
            opened.bind((address.partition("%")[0], 0))
            return [address, opened.getsockname()[1]]
    except OSError:
        return None


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


def _list(said: object) -> list[Any]:
    return said if isinstance(said, list) else []


def _secret(token: str, nonce: str) -> bytes:
    """Known to the nodes only, as that of the connections that were tried."""
    return hmac.new(token.encode(), b"measure " + nonce.encode(), hashlib.sha256).digest()
