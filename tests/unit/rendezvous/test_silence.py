"""What is said of a node that is silent, by real connections: its kernel takes what is sent to it, or does not."""

import asyncio
import struct

import pytest

from allranks.rendezvous.silence import Silence
from allranks.rendezvous.wire import CLOSED


async def _connected(work) -> str:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        _reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            return await work(writer)
        finally:
            writer.close()


def test_a_peer_that_reads_nothing_is_told_from_one_that_is_cut_off():
    """Nobody reads here either, and the kernel acknowledges all the same."""

    async def work(writer: asyncio.StreamWriter) -> str:
        silence = Silence(writer)
        silence.look(3.0)
        writer.write(b"pulse")
        await writer.drain()
        while silence._read(24):  # until the kernel has acknowledged it
            await asyncio.sleep(0.01)
        return silence.why(10.0)

    told = asyncio.run(_connected(work))
    assert told.startswith("no sign of life for 10 s; its machine takes what is sent to it")


class Writer:
    """A connection whose kernel says what it is told to."""

    def __init__(self) -> None:
        self.unacked = self.segments = self.sent = self.sent_again = 0

    def get_extra_info(self, name: str) -> "Writer":
        return self

    def getsockopt(self, level: int, name: int, num_bytes: int) -> bytes:
        info = bytearray(192)
        for at, value in ((24, self.unacked), (100, self.sent_again), (140, self.segments), (156, self.sent)):
            struct.pack_into("=I", info, at, value)
        return bytes(info)


@pytest.mark.parametrize(
    ("unacked", "came", "told"),
    [
        (0, 0, "the processes there do not run"),
        (0, 3, "the processes there do not run"),
        (2, 0, "nothing that is sent to it is acknowledged: the link to it is cut, or the machine is off"),
        (2, 3, "the link is cut in the direction to it"),
    ],
)
def test_each_kind_of_silence(unacked, came, told):
    writer = Writer()
    silence = Silence(writer)
    writer.segments = 100
    silence.look(1.0)
    writer.segments = 110  # what was under way
    silence.look(3.0)
    writer.unacked, writer.segments = unacked, 110 + came
    silence.look(9.0)
    assert told in silence.why(10.0)


def test_packets_that_were_lost_while_the_node_still_answered_are_told_and_not_those_after_it():
    writer = Writer()
    silence = Silence(writer)
    for _ in range(30):
        writer.sent, writer.segments = writer.sent + 1, writer.segments + 1
        silence.look(1.0)
    writer.unacked = 5
    for seconds in range(2, 10):  # the cable is pulled
        writer.sent_again += 1
        silence.look(float(seconds))
    assert "the link to it is cut, or the machine is off" in silence.why(10.0)

    silence = Silence(writer)
    for _ in range(30):
        writer.sent, writer.sent_again, writer.segments = writer.sent + 2, writer.sent_again + 1, writer.segments + 1
        silence.look(1.0)
    silence.look(3.0)
    told = silence.why(10.0)
    assert "no sign of life for 10 s; the network to it loses packets: 50 % of what this node sent to it" in told
    assert "(29 of 58 segments)" in told and "the machine is off" not in told
    told = silence.gone(CLOSED)
    assert told.startswith(f"{CLOSED}; the network to it loses packets: ") and "killed" not in told
    assert silence.gone("it says nonsense") == "it says nonsense"
    assert Silence(writer).gone(CLOSED) == f"{CLOSED}: its launcher was killed, or its machine went down"


def test_where_the_kernel_does_not_tell_only_the_silence_is_told():
    class Closed:
        def get_extra_info(self, name: str) -> None:
            return None

    silence = Silence(Closed())
    silence.look(5.0)
    assert silence.why(10.0) == "no sign of life for 10 s"
