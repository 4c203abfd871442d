"""What nodes tell node 0 beside the run, and what it asks of them, over real sockets of this machine."""

import json
import random
import socket
from collections.abc import Iterator

import pytest

from allranks.rendezvous import Rendezvous
from allranks.rendezvous.newest import MAX_PAYLOAD_BYTES
from tests.unit.rendezvous.nodes import Nodes, join_all, listening_port, node_of, say_hello, until


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    all_nodes = Nodes()
    yield all_nodes
    all_nodes.wait()
    all_nodes.leave()


def taken(rendezvous: Rendezvous, topic: str, count: int) -> dict[int, object]:
    """What node 0 was told of `topic`, as soon as `count` nodes have."""
    found: dict[int, object] = {}

    def came() -> bool:
        found.update(rendezvous.take(topic))
        return len(found) >= count

    until(came)
    return found


def test_node_0_is_told_by_every_node_and_asks_all(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0, 3), node_of(1, 3), node_of(2, 3))
    for rank, rendezvous in enumerate(joined):
        assert rendezvous.tell("state", {"step": rank})
    assert taken(joined[0], "state", 3) == {rank: {"step": rank} for rank in range(3)}
    assert joined[0].take("state") == []

    assert joined[0].ask_all("evidence", {"at": 7})
    for rendezvous in joined:
        asked: list[object] = []
        until(lambda rendezvous=rendezvous, asked=asked: asked.extend(rendezvous.asked("evidence")) or asked)
        assert asked == [{"at": 7}]
        assert rendezvous.asked("evidence") == []


def test_the_newest_wins_and_the_last_word_comes_before_the_good_bye(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    for step in range(2000):
        joined[1].tell("state", step)
    joined[1].leave(0)
    until(lambda: joined[0].parting)
    assert joined[0].take("state") == [(1, 1999)]
    assert joined[0].stop_reason() is None


def test_what_is_too_large_is_not_sent_and_ends_nothing(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    large = "x" * MAX_PAYLOAD_BYTES
    for rendezvous in joined:
        assert not rendezvous.tell("evidence", large)
        assert not rendezvous.ask_all("evidence", large)
    joined[1].tell("evidence", "small")
    assert taken(joined[0], "evidence", 1) == {1: "small"}
    assert joined[0].stop_reason() is None


def test_hostile_words_cost_no_more_than_their_bound(nodes: Nodes) -> None:
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1))
        (head,) = nodes.wait().values()
        assert isinstance(head, Rendezvous)
        dice = random.Random(2)
        strange = [None, [], {}, 3, True, "state", "x" * 1000, "\x1b[2J", "evidence"]
        for _ in range(500):
            message = {"tell": dice.choice(strange), "payload": dice.choice([None, [[]], "y" * 1000, 1e308])}
            raw.sendall(json.dumps(message).encode() + b"\n")
        raw.sendall(json.dumps({"tell": "large", "payload": "x" * MAX_PAYLOAD_BYTES}).encode() + b"\n")
        raw.sendall(b'{"tell": "state", "payload": "last"}\n')
        until(lambda: head.take("state") == [(1, "last")])
        for number in range(100):
            raw.sendall(json.dumps({"tell": f"topic {number}"}).encode() + b"\n")
        raw.sendall(b'{"stopping": true}\n')  # in its order: all before has been taken in then
        until(lambda: head.stopping)
        assert head.tell("state", "of node 0")
        assert head.take("state") == [(0, "of node 0")], "one node's topics are not another's"
        assert head.take("large") == []
        assert sum(len(head.take(f"topic {number}")) for number in range(100)) <= 16
        assert head.stop_reason() is None


def test_words_of_other_versions_are_passed_over(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    joined[0]._tell_all({"weather": "fine"})
    joined[1]._tell_all({"weather": "fine"})
    joined[1].tell("state", 1)
    joined[0].ask_all("state", 2)
    assert taken(joined[0], "state", 1) == {1: 1}
    until(lambda: joined[1].asked("state") == [2])
    assert [one.stop_reason() for one in joined] == [None, None]
