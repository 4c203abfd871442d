"""Each node connects to each other before any rank starts, over addresses of this machine's loopback."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from allranks.cluster import pairs
from allranks.cluster.pairs import MESSAGE_BYTES, Listener, Target, Unreached, unreached
from allranks.cluster.rank_addresses import RankAddress
from allranks.doctor.pairs import Place, unreachable
from allranks.errors import RefusedError
from allranks.findings import Finding
from allranks.rendezvous import prove_pairs
from tests.unit.rendezvous.nodes import Nodes, join_all, node_of, together


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    all_nodes = Nodes(token="the run's")
    yield all_nodes
    all_nodes.wait()
    all_nodes.leave()


def _at(rank: int) -> RankAddress:
    return RankAddress(f"127.0.0.{rank + 1}", "eth0", "gloo", 1500)


def test_nodes_that_reach_each_other_find_nothing(nodes: Nodes) -> None:
    joined = join_all(nodes, *(node_of(rank, 4) for rank in range(4)))
    assert together(joined, lambda one: prove_pairs(one, [_at(one.own.node_rank)])) == [None] * 4
    assert [one.stop_reason() for one in joined] == [None] * 4


def test_who_is_not_reached_is_named_on_all_nodes(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Node 1 offers a port where nobody listens."""
    joined = join_all(nodes, *(node_of(rank, 3) for rank in range(3)))
    with socket.socket() as bound:
        bound.bind(("127.0.0.2", 0))  # and does not listen
        port = bound.getsockname()[1]
        real = Listener.__init__

        def moved(self: Listener, addresses: list[str], secret: bytes) -> None:
            real(self, addresses, secret)
            if "127.0.0.2" in self.ports:
                self.ports["127.0.0.2"] = port

        monkeypatch.setattr(Listener, "__init__", moved)
        found = together(joined, lambda one: prove_pairs(one, [_at(one.own.node_rank)]))
    assert all(isinstance(one, Finding) for one in found) and found[0] == found[1] == found[2]
    assert found[0].who.node == 1
    (line,) = [one.text for one in found[0].evidence]
    assert line == (
        f"node 0 (host0), node 2 (host2) cannot connect to node 1 (host1) at 127.0.0.2:{port} (eth0, gloo): "
        "connection refused"
    )


def _outcome(secret: bytes, listener_secret: bytes) -> list[Unreached]:
    async def both() -> list[Unreached]:
        listener = Listener(["127.0.0.1"], listener_secret)
        await listener.start()
        try:
            return await unreached([Target(1, "127.0.0.1", listener.ports["127.0.0.1"], secret)])
        finally:
            listener.close()

    return asyncio.run(both())


def test_only_nodes_of_the_run_are_answered() -> None:
    assert _outcome(b"secret", b"secret") == []
    (found,) = _outcome(b"another", b"secret")
    assert (found.stage, found.reason) == ("greet", "the connection was closed")


@pytest.mark.parametrize("swallows", ["what it sends", "what it gets"])
def test_a_large_message_that_is_lost_on_the_way_is_told_from_a_port_that_is_closed(
    swallows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a switch that drops large packets: connection and greeting pass."""
    monkeypatch.setattr(pairs, "PAIR_SECONDS", 1.0)

    async def through_a_hole() -> list[Unreached]:
        listener = Listener(["127.0.0.1"], b"secret")
        await listener.start()
        hole = await asyncio.start_server(lambda *streams: _pass(listener.ports["127.0.0.1"], *streams), "127.0.0.1", 0)
        try:
            return await unreached([Target(1, "127.0.0.1", hole.sockets[0].getsockname()[1], b"secret")])
        finally:
            hole.close()
            listener.close()

    async def _pass(port: int, here: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        limits = (64, MESSAGE_BYTES * 2) if swallows == "what it gets" else (MESSAGE_BYTES * 2, 64)
        await asyncio.gather(_first(here, writer, limits[0]), _first(reader, there, limits[1]))

    async def _first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int) -> None:
        while data := await reader.read(4096):
            writer.write(data[:most])
            most -= len(data[:most])
        writer.close()

    (found,) = asyncio.run(through_a_hole())
    assert (found.stage, found.reason) == ("message", "timed out")


def test_strangers_cost_little_and_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_MOST_UNPROVED", 3)

    async def beset() -> list[Unreached]:
        listener = Listener(["127.0.0.1"], b"secret")
        port = listener.ports["127.0.0.1"]
        await listener.start()
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        closed = [reader for reader, _ in idle if await _is_closed(reader)]
        assert len(closed) == 5
        for _, writer in idle:
            writer.write(b"x" * 2**16)
        for reader, writer in idle:  # wrong proofs: all are closed, with no word
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
            writer.close()
        try:
            return await unreached([Target(1, "127.0.0.1", port, b"secret")])
        finally:
            listener.close()

    async def _is_closed(reader: asyncio.StreamReader) -> bool:
        try:
            async with asyncio.timeout(0.3):
                return await reader.read(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    assert asyncio.run(beset()) == []


PLACES = [
    Place(f"node {rank} (gpu{rank})", [RankAddress(f"10.0.0.{rank}", "eth0", "NCCL", 9000)], "32768 to 60999")
    for rank in range(12)
]


def _missed(node: int, reason: str = "timed out") -> Unreached:
    return Unreached(node, f"10.0.0.{node}", 40000 + node, "connect", reason)


def test_many_failures_are_told_by_the_node_that_they_have_in_common() -> None:
    others = [rank for rank in range(12) if rank != 7]
    (line,) = unreachable(PLACES, [(rank, _missed(7)) for rank in others]).evidence
    assert line.text == (
        "node 0 (gpu0), node 1 (gpu1), node 2 (gpu2) and 8 more cannot connect to node 7 (gpu7) at 10.0.0.7:40007 "
        "(eth0, NCCL): timed out"
    )
    (line,) = unreachable(PLACES, [(7, _missed(rank, "no route to host")) for rank in others]).evidence
    assert line.text.startswith("node 7 (gpu7) cannot connect to node 0 (gpu0) at 10.0.0.0:40000 (eth0, NCCL), node 1")
    assert line.text.endswith(" and 8 more: no route to host")
    found = unreachable(PLACES, [(a, _missed(b)) for a in range(12) for b in range(12) if a != b])
    assert len(found.evidence) == 9 and found.evidence[-1].text == "and 4 more like these"
    assert "open TCP 32768 to 60999 between the nodes of the run" in found.remedy
    assert unreachable(PLACES, []) is None


def test_what_to_do_depends_on_what_failed() -> None:
    def remedy(*addresses: str, stage: str = "connect") -> str:
        places = [
            Place(f"node {node}", [RankAddress(address, "eth0", "gloo", 9000 - node)], "1 to 2")
            for node, address in enumerate(addresses)
        ]
        return unreachable(places, [(0, Unreached(1, addresses[1], 5, stage, "timed out"))]).remedy

    assert "open TCP 1 to 2 between the nodes" in remedy("10.0.0.1", "10.0.0.2")
    large = remedy("10.0.0.1", "10.0.0.2", stage="message")
    assert "not the same all the way (eth0 of node 0 has 9000, eth0 of node 1 has 8999)" in large
    assert "ping -M do -s 8972 10.0.0.2" in large and "open TCP" not in large
    assert "127.0.1.1 means each node itself, and node 1 offers it" in remedy("10.0.0.1", "127.0.1.1")
    assert "fe80::2%3 of node 1 means something on its own link only" in remedy("10.0.0.1", "fe80::2%3")
    assert "172.17.0.1 is the address of node 0, node 1: set network.interface" in remedy("172.17.0.1", "172.17.0.1")


def test_a_node_that_offers_nonsense_is_named(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    nonsense = {"nonce": 3, "ports": [], "at": [{"address": "; rm -rf"}], "skip": False}
    work = [lambda one: prove_pairs(one, [_at(0)]), lambda one: one.round("where ranks will listen", nonsense, 9)]
    results = together(joined, lambda one: work[one.own.node_rank](one))
    assert "node 1 (host1) does not say where its ranks will listen" in str(results[0])


@pytest.mark.parametrize("skips", [0, 1])
def test_one_node_that_wants_no_check_spares_all_of_them_it(nodes: Nodes, skips: int) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    elsewhere = RankAddress("192.0.2.9", "eth9", "gloo")
    at = [elsewhere if rank == skips else _at(rank) for rank in (0, 1)]
    work = [lambda one, rank=rank: prove_pairs(one, [at[rank]], skip=rank == skips) for rank in (0, 1)]
    assert together(joined, lambda one: work[one.own.node_rank](one)) == [None, None]
    assert [one.stop_reason() for one in joined] == [None, None]


def test_an_address_that_this_node_does_not_have_is_told(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    elsewhere = RankAddress("192.0.2.9", "eth9", "gloo")
    with pytest.raises(
        RefusedError, match=r"node 0 \(host0\) cannot listen at 192.0.2.9, where its ranks will: Cannot"
    ):
        prove_pairs(joined[0], [elsewhere])
