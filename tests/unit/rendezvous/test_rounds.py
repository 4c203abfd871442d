"""Rounds: every node hands something in, and each gets what all have handed in, or hears who did not."""

import json
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from allranks.errors import RefusedError
from allranks.findings import Finding, Who
from allranks.rendezvous import Rendezvous
from allranks.rendezvous.rendezvous import MOST_ROUNDS
from tests.unit.rendezvous.conftest import Deadline
from tests.unit.rendezvous.nodes import Nodes, join_all, listening_port, node_of, say_hello, together, until


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    all_nodes = Nodes()
    yield all_nodes
    all_nodes.wait()
    all_nodes.leave()


def test_every_node_gets_what_all_handed_in_whoever_comes_first(nodes: Nodes) -> None:
    joined = join_all(nodes, *(node_of(rank, 3) for rank in range(3)))
    chance = random.Random(5)
    for number in range(8):
        names = [f"{number} {letter}" for letter in "abc"[: chance.randint(1, 3)]]
        late = chance.randrange(3)
        handed_in = threading.Event()

        def work(rendezvous: Rendezvous, names=names, late=late, handed_in=handed_in) -> object:
            rank = rendezvous.own.node_rank
            if rank == late:
                handed_in.wait()
            else:
                handed_in.set()
            return [rendezvous.round(name, {name: rank}, 30.0) for name in names]

        expected = [[{name: rank} for rank in range(3)] for name in names]
        assert together(joined, work) == [expected] * 3


def test_what_node_0_makes_of_it_is_what_all_get(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    assert together(joined, lambda one: one.round("sum", one.own.node_rank + 1, 30.0, decide=sum)) == [3, 3]


def test_what_node_0_refuses_is_refused_everywhere(nodes: Nodes) -> None:
    joined = join_all(nodes, *(node_of(rank, 3) for rank in range(3)))

    def refuse(payloads: object) -> None:
        raise RefusedError(f"not {payloads}")

    results = together(joined, lambda one: one.round("r", one.own.node_rank, 30.0, decide=refuse))
    assert [str(result) for result in results] == ["not [0, 1, 2]"] * 3


def test_who_is_missing_at_the_deadline_is_named_to_all_that_came(nodes: Nodes, deadline: Deadline) -> None:
    joined = join_all(nodes, *(node_of(rank, 4) for rank in range(4)))
    came = [joined[0], joined[2]]

    def both_came() -> bool:
        return joined[0]._rounds.get("ports", {}).keys() == {0, 2}

    later = threading.Thread(target=deadline.passes_once, args=(both_came, 65.0))
    later.start()
    for result in together(came, lambda one: one.round("ports", 1, 60.0)):
        assert isinstance(result, RefusedError)
        assert str(result) == "ports: waiting for node 1 (host1), node 3 (host3); gave up after 60 s"
    later.join()


def test_a_node_0_that_does_not_come_to_a_round_is_not_waited_for_without_end(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    monkeypatch.setattr("allranks.rendezvous.member.ANSWER_SECONDS", 0.5)
    (result,) = together(joined[1:], lambda one: one.round("ports", 1, 0.5))
    assert str(result).startswith("ports: node 0 (host0) gave no answer")


def test_a_round_ends_with_the_node_that_is_lost_in_it(nodes: Nodes) -> None:
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1))
        head = nodes.wait()[0]
    (result,) = together([head], lambda one: one.round("ports", 1))
    assert "node 1 (host1) was lost" in str(result)


def test_rounds_that_there_are_not_fill_no_memory(nodes: Nodes) -> None:
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1))
        head = nodes.wait()[0]
        for number in range(MOST_ROUNDS + 1):
            raw.sendall(json.dumps({"round": f"{number}", "payload": "x"}).encode() + b"\n")
        until(head.stop_reason)
        assert "takes part in rounds that there are not" in head.stop_reason()


@pytest.mark.parametrize("teller", [0, 1])
def test_all_nodes_hear_of_a_stopped_rank_and_of_a_wish_to_stop(nodes: Nodes, teller: int) -> None:
    joined = join_all(nodes, *(node_of(rank, 3) for rank in range(3)))
    stopped = Finding("rank-stopped", "rank 7 is stopped", "warning", Who(teller, 7, "gpu"))
    others = [one for one in joined if one.own.node_rank != teller]
    joined[teller].tell_stopped([stopped])
    until(lambda: all(one.stopped.get(teller) == (stopped,) for one in others))
    joined[teller].tell_stopped([])
    until(lambda: all(one.stopped.get(teller) == () for one in others))
    assert not any(one.stopping for one in joined)
    joined[teller].tell_stopping()
    until(lambda: all(one.stopping for one in others))
    assert all(one.stop_reason() is None for one in joined)
