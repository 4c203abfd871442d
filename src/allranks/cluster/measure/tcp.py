"""Latency and bandwidth of TCP from this node to another, between two addresses that both have proved to own.

The end that receives counts: what a sender has written may still lie in its own buffers. Everything is bounded in
seconds, however slow the link; nobody looks at what is read.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from allranks.cluster.not_reached import why_not_reached
from allranks.cluster.pairs import PROOF_BYTES, Target, open_ports, proof

STREAMS = 4
"""One is bound to one core and to one queue of a network card."""
SECONDS = 0.4
"""That the streams send."""
LINK_SECONDS = 8.0
"""At most for all of one link, however slow it is."""
_PINGS, _PING = 32, bytes(64)
_CHUNK = bytes(2**20)
_STEP_SECONDS = 3.0
"""For each single exchange: a SYN that was lost is sent again after 1 s."""
_DRAIN_SECONDS = 1.5
"""That the receiver counts at most: behind a slow link whole buffers are still under way."""
_MOST_AT_ONCE = 32
_COUNTED = struct.Struct("!Qd")


@dataclass(frozen=True)
class Measured:
    """Of one link, in one direction. `failed` says why it came to nothing."""

    latency_seconds: float | None = None
    """Of one way: half of the median time there and back of 64 bytes."""
    bytes_per_second: float | None = None
    failed: str = ""


class Receiver:
    """Answers whoever knows its secret, at a port of each of `addresses`. Raises OSError for one that is not ours."""

    def __init__(self, addresses: Sequence[str], secret: bytes) -> None:
        self._secret = secret
        self._closed = threading.Event()
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._sockets, self.ports = open_ports(addresses)
        for opened in self._sockets:
            opened.settimeout(0.2)
            threading.Thread(target=self._accept, args=(opened,), name="measure", daemon=True).start()

    def close(self) -> None:
        """Those that are being answered end within seconds by themselves."""
        self._closed.set()
        for opened in self._sockets:
            opened.close()

    def _accept(self, opened: socket.socket) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):  # nobody came, or it is closed
                came, _ = opened.accept()
                if not self._room.acquire(blocking=False):
                    came.close()
                    continue
                threading.Thread(target=self._answer, args=(came,), name="measure", daemon=True).start()

    def _answer(self, came: socket.socket) -> None:
        try:
            with came, contextlib.suppress(OSError):
                came.settimeout(_STEP_SECONDS)
                if not hmac.compare_digest(_exactly(came, PROOF_BYTES), proof(self._secret, b"measures")):
                    return
                came.sendall(proof(self._secret, b"is measured"))
                asked = _exactly(came, 1)
                if asked == b"p":
                    came.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for _ in range(_PINGS):
                        came.sendall(_exactly(came, len(_PING)))
                elif asked == b"s":
                    came.sendall(_COUNTED.pack(*_count(came)))
                    came.shutdown(socket.SHUT_WR)
                # Who connected closes first; what it still sends is let go by, for a reset could overtake the answer.
                until = time.monotonic() + _STEP_SECONDS
                while time.monotonic() < until and came.recv(2**20):
                    pass
        finally:
            self._room.release()


def measure(target: Target, source: str) -> Measured:
    """What comes through from `source`, an address of this node, to the other's. Raises nothing."""
    try:
        latency = _latency(target, source)
        return Measured(latency, _bandwidth(target, source))
    except OSError as error:
        return Measured(failed=why_not_reached(error))


def _latency(target: Target, source: str) -> float:
    with _connected(target, source, b"p") as opened:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(_PINGS):
            begun = time.perf_counter()
            opened.sendall(_PING)
            _exactly(opened, len(_PING))
            times.append(time.perf_counter() - begun)
        return sorted(times)[len(times) // 2] / 2


def _bandwidth(target: Target, source: str) -> float:
    """Bytes per second of all streams together."""
    rates: list[float] = []
    errors: list[OSError] = []

    def send() -> None:
        try:
            with _connected(target, source, b"s") as opened:
                until = time.monotonic() + SECONDS
                while (left := until - time.monotonic()) > 0:
                    opened.settimeout(left)
                    with contextlib.suppress(TimeoutError):  # its buffer is full: that is the answer
                        opened.send(_CHUNK)
                opened.settimeout(_STEP_SECONDS)
                opened.shutdown(socket.SHUT_WR)
                count, seconds = _COUNTED.unpack(_exactly(opened, _COUNTED.size))
                rates.append(count / max(seconds, 1e-9))
        except OSError as error:
            errors.append(error)

    streams = [threading.Thread(target=send, name="measure", daemon=True) for _ in range(STREAMS)]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join(LINK_SECONDS)
    if not rates:
        raise errors[0] if errors else TimeoutError("no stream ended in time")
    return sum(rates)


def _count(came: socket.socket) -> tuple[int, float]:
    """The bytes that come after the first chunk, and the seconds in which they came."""
    room = bytearray(2**20)
    first_bytes = came.recv_into(room)
    begun = last = time.perf_counter()
    count = 0
    while first_bytes and time.perf_counter() - begun < _DRAIN_SECONDS:
        try:
            got = came.recv_into(room)
        except TimeoutError:
            break
        if not got:
            break
        last = time.perf_counter()
        count += got
    return (count, last - begun) if count else (first_bytes, SECONDS)


def _connected(target: Target, source: str, asks: bytes) -> socket.socket:
    opened = socket.create_connection(
        (target.address, target.port), timeout=_STEP_SECONDS, source_address=(source.partition("%")[0], 0)
    )
    try:
        opened.sendall(proof(target.secret, b"measures"))
        if not hmac.compare_digest(_exactly(opened, PROOF_BYTES), proof(target.secret, b"is measured")):
            raise ConnectionAbortedError("somebody else listens there")
        opened.sendall(asks)
        return opened
    except BaseException:
        opened.close()
        raise


def _exactly(opened: socket.socket, size: int) -> bytes:
    """Raises OSError where the other end has closed before."""
    parts = b""
    while len(parts) < size:
        got = opened.recv(size - len(parts))
        if not got:
            raise ConnectionResetError("the connection was closed")
        parts += got
    return parts
