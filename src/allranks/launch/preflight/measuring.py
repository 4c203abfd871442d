"""The nodes measure their links and devices together: each slot is a round, so that no two pairs share a node."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from statistics import median
from typing import Any

from allranks.cluster.measure.child import Request
from allranks.cluster.measure.children import DeviceMeasured, measure_devices
from allranks.cluster.measure.tcp import Receiver
from allranks.cluster.measure.values import Measurements
from allranks.cluster.node_report import NodeReport
from allranks.cluster.rank_addresses import RankAddress, rank_addresses
from allranks.errors import RefusedError
from allranks.launch.preflight.measuring_links import MOST_ADDRESSES, ROUND_SECONDS, Links, Transport, items
from allranks.launch.preflight.measuring_others import measure_others
from allranks.launch.preflight.rdma_transports import own_rails, shared_rails, why_without
from allranks.launch.preflight.tcp_transports import RanksTransport, offered_networks, secret_of, shared_networks
from allranks.launch.preflight.together import Preflight, node_names
from allranks.launch.spec.options import Launch
from allranks.listing import printable
from allranks.observe import RunDir, read_events
from allranks.observe.events import CommunicationEvent, StepEvent
from allranks.rendezvous import Rendezvous

_DEVICE_SECONDS = 120.0
"""For starting PyTorch on a cold disk, a matmul and a copy, meeting, and the all-reduces."""
_MEET_SECONDS = 60.0
_SIZES = (8 * 2**10, 2**20, 32 * 2**20)
_MOST_RANKS = 512
_EARLIER_EVENTS = 300


def measured_together(
    rendezvous: Rendezvous,
    launch: Launch,
    variables: Mapping[str, str],
    preflight: Preflight,
    run: RunDir,
    tell: Callable[[Measurements], None],
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
        report=preflight.report(),
        skip=skip,
        is_apart=bool(preflight.pairs and preflight.pairs[1]),
        tell=tell,
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
    report: NodeReport | None = None,
    skip: str = "",
    is_apart: bool = False,
    tell: Callable[[Measurements], None] = lambda found: None,
) -> Measurements:
    """What all nodes measured; whole on node 0, where alone it is judged. Raises RefusedError where a node is lost.

    `own` are the addresses that this node's ranks will give to others, `variables` what they get beside the
    environment. `report` tells of its other interfaces and adapters. `skip`: why this node does not want it.
    `is_apart`, on node 0: some pairs do not reach each other. `tell` is called once the links are known, on all nodes.
    """
    nonce, token = secrets.token_hex(16), rendezvous.terms.token
    with ExitStack() as open_ends:
        secret = secret_of(token, nonce)
        receiving = open_ends.enter_context(closing(_Receiving(own, secret, skip)))
        networks, receivers = offered_networks(None if receiving.skip else report, own, secret)
        rails = own_rails(None if receiving.skip else report, own, variables)
        for receiver in receivers:
            open_ends.callback(receiver.close)
        open_ends.callback(rails.close)
        offer = {
            "nonce": nonce,
            "at": receiving.offered,
            "networks": networks,
            "rails": rails.offered,
            "skip": receiving.skip,
            "master": _free_port(own),
        }

        def decide(all_offers: Sequence[Any]) -> object:
            reasons = [_why_not(name, said) for name, said in zip(names, all_offers, strict=True)]
            if is_apart:
                reasons.append("some nodes do not reach each other")
            return {"offers": list(all_offers), "skip": next(filter(None, reasons), "")}

        answer = rendezvous.round("measure: where", offer, ROUND_SECONDS, decide=decide)
        answer = answer if isinstance(answer, dict) else {}
        if why := answer.get("skip"):
            return Measurements(skipped=printable(why, 300))
        offers = items(answer.get("offers"))
        if len(offers) != len(names) or not all(isinstance(one, dict) for one in offers):
            raise RefusedError("node 0 does not say where the nodes are to be measured")
        links = Links(rendezvous, names, RanksTransport(own, offers, token))
        links.measure_all()
        tell(Measurements(links=links.best(), share_seen=links.share))
        transports: list[Transport] = [
            *shared_networks(offers, rendezvous.own.node_rank, token),
            *shared_rails(offers, rails),
        ]
        others = measure_others(rendezvous, names, transports)
    devices = _measure_devices(rendezvous, names, launch, variables, offers[0])
    return replace(
        devices,
        links=links.best(),
        share_seen=links.share,
        others=others,
        without_rdma=why_without(names, offers),
    )


class _Receiving:
    """This node's end of links that others measure; `skip` where there cannot be one."""

    def __init__(self, own: Sequence[RankAddress], secret: bytes, skip: str) -> None:
        self.skip, self.offered = skip, list[dict[str, Any]]()
        self._receiver: Receiver | None = None
        if skip:
            return
        try:
            self._receiver = Receiver([one.address for one in own[:MOST_ADDRESSES]], secret)
        except OSError as error:
            self.skip = f"it cannot listen at {', '.join(one.address for one in own)}: {error.strerror}"
            return
        self.offered = [
            {"address": one.address, "port": self._receiver.ports[one.address], "library": one.library}
            for one in own[:MOST_ADDRESSES]
        ]

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()


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
            name: [one for each in items(told)[:64] if (one := DeviceMeasured.from_message(each)) is not None]
            for name, told in zip(names, said, strict=True)
        }
        kept.append(Measurements(devices=read, world_size=world_size if requests[0].port else 0))
        return None

    rendezvous.round("measure: devices", told, _DEVICE_SECONDS + ROUND_SECONDS, decide=decide)
    return kept[0] if kept else Measurements()


def _why_not(name: str, offer: Any) -> str:
    if not isinstance(offer, dict):
        return f"{name} does not say where it is to be measured"
    return f"{name}: {offer['skip']}" if offer.get("skip") else ""


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
