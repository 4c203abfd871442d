"""Measured over loopback: what comes through is counted by who receives it, and nobody waits for ever."""

import socket
import threading
import time
from contextlib import closing

import pytest

from allranks.cluster.measure.tcp import LINK_SECONDS, Receiver, measure
from allranks.cluster.pairs import Target

SECRET = b"s" * 32


def target(port, secret=SECRET, address="127.0.0.1"):
    return Target(1, address, port, secret)


def test_a_link_has_a_latency_and_a_rate():
    with closing(Receiver(["127.0.0.1"], SECRET)) as receiver:
        measured = measure(target(receiver.ports["127.0.0.1"]), "127.0.0.2")
    assert measured.failed == "" and measured.latency_seconds > 0 and measured.bytes_per_second > 1e6


def test_who_does_not_know_the_secret_learns_nothing():
    with closing(Receiver(["127.0.0.1"], SECRET)) as receiver:
        measured = measure(target(receiver.ports["127.0.0.1"], b"o" * 32), "127.0.0.1")
    assert (measured.latency_seconds, measured.bytes_per_second) == (None, None) and "closed" in measured.failed


def test_somebody_else_who_listens_there_is_no_node():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            came, _ = server.accept()
            with came:
                came.sendall(b"x" * 64)
                came.recv(100)

        stranger = threading.Thread(target=answer)
        stranger.start()
        measured = measure(target(server.getsockname()[1]), "127.0.0.1")
        stranger.join()
    assert measured.failed == "somebody else listens there"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_nobody_listens_there(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as free:
        try:
            free.bind((address, 0))
        except OSError:
            pytest.skip("this machine has no IPv6; nothing is to be done")
        port = free.getsockname()[1]
    assert measure(target(port, address=address), address).failed == "connection refused"


def test_one_that_takes_nothing_is_left_after_its_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        measured = measure(target(silent.getsockname()[1]), "127.0.0.1")
    assert measured.failed == "timed out" and time.monotonic() - begun < LINK_SECONDS + 10
