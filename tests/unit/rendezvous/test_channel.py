"""What a token proves: every line of a connection, by whom it was said, when and for which connection."""

import asyncio
import contextlib
import itertools
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from allranks.errors import AllranksError
from allranks.findings import Finding
from allranks.launch.agreement import RunAgreement
from allranks.rendezvous import Rendezvous, join, wire
from allranks.rendezvous.channel import Channel
from allranks.rendezvous.terms import Terms
from allranks.rendezvous.wire import WireError
from tests.ports import free_port
from tests.unit.rendezvous.conftest import Deadline
from tests.unit.rendezvous.nodes import node_of

NONCES = ("of node 0", "of the other")
MESSAGES = [
    {"pulse": True},
    {"failed": "a \u00e9\n{}"},
    {"bye": 0, "finding": None},
    {"round": "x", "payload": [1, None]},
]


class Written:
    """Takes the place of a stream's writer: keeps the bytes."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    async def drain(self) -> None:
        pass


class Reads:
    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self, size: int) -> bytes:
        data, self.data = self.data[:size], self.data[size:]
        return data


def said(messages: list[dict], side: str = "other", token: str = "right", nonces: tuple[str, str] = NONCES) -> bytes:
    writer = Written()
    channel = Channel(wire.Lines(Reads(b"")), writer, side, token, nonces)

    async def say() -> None:
        for message in messages:
            await channel.send(message)

    asyncio.run(say())
    return writer.data


def heard(data: bytes, side: str = "node 0", token: str = "right") -> tuple[list[dict], WireError]:
    """The messages that are believed, and what ended the connection."""
    channel = Channel(wire.Lines(Reads(data)), Written(), side, token, NONCES)
    messages = []

    async def listen() -> WireError:
        while True:
            try:
                messages.append(await channel.receive())
            except WireError as error:
                return error

    return messages, asyncio.run(listen())


@pytest.mark.parametrize("token", ["", "right"])
def test_what_is_said_is_heard(token: str) -> None:
    for other, side in (("other", "node 0"), ("node 0", "other")):
        messages, ended = heard(said(MESSAGES, other, token), side, token)
        assert messages == MESSAGES and "closed" in str(ended)


def test_no_byte_can_be_changed() -> None:
    data = said(MESSAGES)
    chance = random.Random(0)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << chance.randrange(8)
        messages, _ = heard(bytes(changed))
        assert messages == MESSAGES[: len(messages)] and len(messages) <= data[:position].count(b"\n")


def test_no_line_can_be_left_out_moved_or_said_twice() -> None:
    lines = said(MESSAGES).splitlines(keepends=True)
    for size in range(len(lines) + 2):
        for chosen in itertools.product(range(len(lines)), repeat=min(size, 4)):
            messages, _ = heard(b"".join(lines[index] for index in chosen))
            in_order = list(itertools.takewhile(lambda pair: pair[0] == pair[1], enumerate(chosen)))
            assert messages == MESSAGES[: len(in_order)]


@pytest.mark.parametrize(
    "data",
    [
        said(MESSAGES, side="node 0"),
        said(MESSAGES, token="wrong"),
        said(MESSAGES, token=""),
        said(MESSAGES, nonces=("of node 0", "of a connection before")),
        said(MESSAGES, nonces=NONCES[::-1]),
        b"\n",
        b"x" * 64 + b"{}\n",
    ],
    ids=["sent back", "another token", "no token", "another connection", "nonces exchanged", "empty", "made up"],
)
def test_what_was_not_said_here_and_now_is_not_believed(data: bytes) -> None:
    messages, ended = heard(data)
    assert messages == [] and "token" in str(ended)


class Between:
    """Stands between a node and node 0; keeps all lines, each as it is after `change`, with which side said it."""

    def __init__(self, port: int, change: Callable[[bytes], bytes] = lambda line: line) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self._change, self._to = change, port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        raw, _ = self._server.accept()
        while True:  # until node 0 listens
            with contextlib.suppress(OSError):
                head = socket.create_connection(("127.0.0.1", self._to))
                break
        pumps = [threading.Thread(target=self._pump, args=pair) for pair in ((raw, head, "other"), (head, raw, "0"))]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()

    def _pump(self, source: socket.socket, target: socket.socket, side: str) -> None:
        with contextlib.suppress(OSError), source.makefile("rb") as stream:
            for line in stream:
                changed = self._change(line)
                self.lines.append((side, changed))
                target.sendall(changed)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()


@contextlib.contextmanager
def joining(port: int, rank: int, token: str = "right") -> Iterator[list]:
    """Join in a thread; yields a list that holds the outcome in the end."""
    result: list[Rendezvous | AllranksError] = []

    def work() -> None:
        try:
            terms = Terms("127.0.0.1", port, "run", token, join_seconds=20.0)
            result.append(join(node_of(rank), terms, RunAgreement(), say=lambda text: None))
        except AllranksError as error:
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield result
    finally:
        thread.join()


def _join_through(change: Callable[[bytes], bytes] = lambda line: line) -> tuple[Between, Rendezvous, Rendezvous]:
    port = free_port()
    between = Between(port, change)
    with joining(port, 0) as head, joining(between.port, 1) as member:
        pass
    assert isinstance(head[0], Rendezvous) and isinstance(member[0], Rendezvous), (head, member)
    return between, head[0], member[0]


def test_every_line_after_the_hello_is_proven_up_to_the_good_bye() -> None:
    between, head, member = _join_through()
    member.leave(1, Finding("out-of-memory", "out of memory"))
    head.leave(1)
    between.close()
    greeting, hello, *lines = between.lines
    assert "greeting" in json.loads(greeting[1]) and "hello" in json.loads(hello[1])
    words = set()
    for _, line in lines:
        int(line[:64], 16)
        words |= json.loads(line[64:]).keys()
    assert {"welcome", "account", "go", "bye"} <= words
    assert not any(b"right" in line for _, line in between.lines)


def test_a_good_bye_that_was_changed_on_the_way_is_no_success() -> None:
    between, head, member = _join_through(lambda line: line.replace(b'"bye": 1', b'"bye": 0'))
    member.leave(1, Finding("out-of-memory", "out of memory"))
    with head._changed:
        head._changed.wait_for(head.stop_reason, 30)
    assert "node 1 (host1) was lost: sent a line that the token does not prove" in head.stop_reason()
    head.leave(1)
    between.close()


def test_a_recorded_join_is_not_accepted_again(deadline: Deadline) -> None:
    between, head, member = _join_through()
    for rendezvous in (member, head):
        rendezvous.leave(0)
    between.close()
    recorded = b"".join(line for side, line in between.lines if side == "other")
    port = free_port()
    with joining(port, 0) as again:
        while True:
            with contextlib.suppress(OSError):
                raw = socket.create_connection(("127.0.0.1", port))
                break
        with raw:
            raw.sendall(recorded)
            answers = raw.makefile("rb").read()
        deadline.passes_once(lambda: True)
    assert b"welcome" not in answers and b"ALLRANKS_TOKEN" in answers
    assert isinstance(again[0], AllranksError) and "another ALLRANKS_TOKEN" in str(again[0])
