"""What the kernel says of real connections."""

import os
import socket
from collections.abc import Iterator

import pytest

from allranks.cluster.tcp_info import connections_of, socket_inodes

MEGABYTE = 2**20


@pytest.fixture(params=["127.0.0.1", "::1"])
def connected(request) -> Iterator[tuple[socket.socket, socket.socket]]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        listening = socket.create_server((request.param, 0), family=family)
    except OSError:
        pytest.skip(f"{request.param} is not there")
    with listening, socket.create_connection(listening.getsockname()[:2]) as one:
        other, _ = listening.accept()
        with other:
            yield one, other


def test_what_a_connection_has_carried(connected):
    one, other = connected
    left = 4 * MEGABYTE
    while left:
        one.sendall(bytes(MEGABYTE // 4))
        left -= MEGABYTE // 4
        for _ in range(MEGABYTE // 4 // 4096):
            assert len(other.recv(4096, socket.MSG_WAITALL)) == 4096
    inode = os.fstat(one.fileno()).st_ino
    assert {inode, os.fstat(other.fileno()).st_ino} <= socket_inodes(os.getpid())
    while (told := connections_of({inode})[inode]).acked_bytes < 4 * MEGABYTE:
        pass
    assert told.local == told.peer == one.getsockname()[0]
    assert told.acked_bytes == pytest.approx(4 * MEGABYTE, abs=1)
    assert told.num_segments > 10 and told.num_retransmits <= told.num_segments
    assert told.carrying_seconds >= 0


def test_of_other_sockets_nothing_is_told(connected):
    assert connections_of(set()) == {}
    assert connections_of({2**32 - 1}) == {}


def test_a_process_that_is_gone_has_none():
    assert socket_inodes(2**22 + 1) == set()
