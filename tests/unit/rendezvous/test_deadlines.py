"""No wait of the channel is without end, whatever the other side does not do, and whatever of ours breaks."""

import asyncio
import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from allranks.errors import RefusedError
from allranks.launch.agreement import RunAgreement
from allranks.rendezvous import Rendezvous, channel, introduction, join, member, wire
from allranks.rendezvous import head as head_module
from allranks.rendezvous.terms import Terms
from tests.unit.rendezvous.conftest import Deadline
from tests.unit.rendezvous.nodes import Nodes, join_all, listening_port, node_of, say_hello, together, until

GREETING = {"greeting": wire.GREETING, "nonce": "1"}
GO = {"go": {"run": "x", "nodes": [node_of(0).to_message(), node_of(1).to_message()]}, "proof": ""}


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    all_nodes = Nodes(silence_seconds=1.0)
    yield all_nodes
    all_nodes.wait()
    all_nodes.leave()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of the channel itself, as short as a test may wait."""
    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 0.5)
    monkeypatch.setattr(wire, "PULSE_SECONDS", 0.1)
    monkeypatch.setattr(member, "ANSWER_SECONDS", 0.3)
    # By its name: `join` of the room is the function.
    monkeypatch.setattr(sys.modules["allranks.rendezvous.rendezvous"], "PATIENT_SECONDS", 1.0)


@contextlib.contextmanager
def false_node_0(says: list[dict], *, pulses: bool, reads: bool = True) -> Iterator[int]:
    """Says so much to whoever comes, and then pulses or nothing; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            for message in says:
                await wire.send(writer, message)
            reading = asyncio.ensure_future(reader.read() if reads else asyncio.sleep(3600))
            while not reading.done():
                if pulses:
                    await wire.send(writer, {"pulse": True})
                await asyncio.sleep(0.1)

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1024)
        port.append(server.sockets[0].getsockname()[1])
        over.append((asyncio.get_running_loop(), asyncio.current_task()))
        up.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()

    port: list[int] = []
    over: list = []
    up = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    up.wait()
    try:
        yield port[0]
    finally:
        loop, task = over[0]
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _come_to(port: int, join_seconds: float = 20.0) -> Rendezvous:
    terms = Terms("127.0.0.1", port, "", join_seconds=join_seconds, silence_seconds=1.0)
    return join(node_of(1), terms, RunAgreement(), say=lambda text: None)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("pulses", [True, False], ids=["pulses", "silence"])
@pytest.mark.parametrize("number", range(3))
def test_a_node_0_that_goes_so_far_and_no_further_is_given_up(number: int, pulses: bool) -> None:
    said = [GREETING, {"welcome": True}][:number]
    with false_node_0(said, pulses=pulses) as port, pytest.raises(RefusedError, match=r"could not meet node 0"):
        _come_to(port, join_seconds=0.5)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "reads nothing"])
def test_a_silent_node_0_is_lost_also_while_more_is_to_be_said_than_it_takes(reads: bool) -> None:
    with false_node_0([GREETING, {"welcome": True}, GO], pulses=False, reads=reads) as port:
        joined = _come_to(port)
        try:
            with pytest.raises(RefusedError, match=r"node 0 .host0. was lost: no sign of life"):
                joined.round("all that I have", "x" * 2**25)
        finally:
            joined.leave(1)


FAULTS = {
    "what node 0 hears": (head_module.Head, "_hand_in"),
    "how node 0 finds silence": (head_module.Head, "_find_silent"),
    "what node 0 sends": (head_module, "_send_quietly"),
    "what a node hears": (member.Member, "_take_in"),
    "how nodes find silence": (wire.Clock, "on_time"),
    "what a node sends": (channel.Channel, "send"),
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_of_ours_breaks_every_node_ends_and_one_says_what_it_was(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    joined = join_all(nodes, *(node_of(rank, 3) for rank in range(3)))

    def broken(*_: object, **__: object) -> None:
        raise TypeError("a fault of ours")

    where, name = FAULTS[fault]
    # Whoever runs this now goes on as before; what is begun from here on breaks.
    monkeypatch.setattr(where, name, broken)
    together(joined, lambda one: one.round("r", 1))
    for one in joined:
        until(one.stop_reason)
    assert any("failed: TypeError('a fault of ours')" in one.stop_reason() for one in joined)


@pytest.mark.usefixtures("soon")
def test_an_answer_that_cannot_be_sent_ends_the_run(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    together(joined, lambda one: one.round("r", 1, decide=lambda payloads: object()))
    for one in joined:
        until(one.stop_reason)
        assert "not JSON serializable" in one.stop_reason()


def test_a_stranger_that_finds_a_fault_of_ours_ends_nothing(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    real = introduction.proves
    broken_by = iter([True])

    def proves(*words: object) -> bool:
        if next(broken_by, False):
            raise TypeError("a fault of ours")
        return real(*words)

    monkeypatch.setattr(introduction, "proves", proves)
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        raw.sendall(json.dumps({"hello": {}}).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            while raw.recv(65536):
                pass
    with socket.create_connection(("127.0.0.1", nodes.terms["port"])) as raw:
        say_hello(raw, node_of(1))
        assert isinstance(nodes.wait()[0], Rendezvous)
    assert "Traceback" not in capfd.readouterr().err


@contextlib.contextmanager
def small_packets_only(port: int) -> Iterator[int]:
    """A port that leads to `port`, but of what is said there it lets through so much as fits into one packet."""

    def pass_on(source: socket.socket, target: socket.socket, most: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data[:most])
                most -= len(data[:most])
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = server.accept()
                there = socket.create_connection(("127.0.0.1", port))
                for source, target, most in ((here, there, 600), (there, here, 2**20)):
                    threading.Thread(target=pass_on, args=(source, target, most), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.usefixtures("soon")
def test_both_sides_read_that_large_packets_do_not_get_through(nodes: Nodes, deadline: Deadline) -> None:
    nodes.start(node_of(0))
    with small_packets_only(listening_port(nodes)) as port:
        large = {f"key {number}": "x" * 100 for number in range(100)}
        nodes.start(node_of(1, same=large), port=port)
        # Node 1 reads it already while it waits.
        told = "it is there, and said of this node: it said who it is, but what it has did"
        deadline.passes_once(lambda: any(told in line for line in nodes.said))
        results = nodes.wait()
    for rank in (0, 1):
        assert "what it has did not come whole" in str(results[rank]) and "MTU" in str(results[rank])
