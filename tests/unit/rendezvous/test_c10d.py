"""Nodes without ranks of their own, as torchrun's c10d has them: the one that the endpoint names is the host."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from allranks.errors import RefusedError
from allranks.rendezvous import Participant, Rendezvous, is_here, prove_pairs, tell_node_0
from allranks.rendezvous.listen import listen
from allranks.rendezvous.terms import Terms
from tests.unit.rendezvous.conftest import Deadline
from tests.unit.rendezvous.nodes import Nodes, failure, listening_port, node_of, ready, together, until
from tests.unit.rendezvous.test_pairs import _at


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    all_nodes = Nodes(by_c10d=True)
    yield all_nodes
    all_nodes.wait()
    all_nodes.leave()


def _unnumbered(number: int, nnodes: int = 2, **changed: object) -> Participant:
    return replace(node_of(number, nnodes, **changed), node_rank=-1, has_rank=False)


def _meet(nodes: Nodes, nnodes: int, hosts: tuple[int, ...] = (0,)) -> list[Rendezvous]:
    """Nodes 0, 1, … by host name, of which `hosts` are on the machine that the endpoint names."""
    for number in range(nnodes):
        nodes.start(_unnumbered(number, nnodes), key=number, is_host=number in hosts)
    results = nodes.wait()
    assert all(isinstance(result, Rendezvous) for result in results.values()), results
    return [results[number] for number in range(nnodes)]


@pytest.mark.parametrize("hosts", [(0,), (1,), (0, 1, 2)], ids=["the first", "another", "all on one machine"])
def test_the_nodes_meet_and_get_numbers_that_all_know(nodes: Nodes, hosts: tuple[int, ...]) -> None:
    joined = _meet(nodes, 3, hosts)
    assert sorted(one.own.node_rank for one in joined) == [0, 1, 2]
    names = [[node.name for node in one.nodes] for one in joined]
    assert names[0] == names[1] == names[2]
    for number, one in enumerate(joined):
        assert one.nodes[one.own.node_rank].host == f"host{number}" and one.own.host == f"host{number}"
    (host,) = [number for number, one in enumerate(joined) if one.own.node_rank == 0]
    assert host in hosts


def test_they_exchange_rounds_and_reach_each_other(nodes: Nodes) -> None:
    joined = _meet(nodes, 3)
    assert together(joined, lambda one: prove_pairs(one, [_at(one.own.node_rank)])) == [None] * 3
    together(joined, lambda one: ready(one, {"data": "x"}))
    assert [account["host"] for _, account in sorted(joined[0].accounts.items())] == [
        node.host for node in joined[0].nodes
    ]


def test_a_node_that_is_lost_is_named_by_its_host(nodes: Nodes) -> None:
    joined = _meet(nodes, 3)
    joined[2].leave(1, failure("its disk is full", "disk"))
    for number in (0, 1):
        until(joined[number].stop_reason)
        assert joined[number].stop_reason() == "host2 (pid 102): its disk is full"
        assert joined[number].stop_finding().who.node == "host2"


def test_how_many_are_missing_is_told_at_the_deadline(deadline: Deadline) -> None:
    nodes = Nodes(by_c10d=True)
    nodes.start(_unnumbered(0, 3), key=0, is_host=True)
    nodes.start(_unnumbered(1, 3), key=1, join_seconds=1000.0)
    deadline.passes_once(lambda: any("2 of 3 nodes have come" in line for line in nodes.said))
    for result in nodes.wait().values():
        assert "2 of 3 nodes have come" in str(result)
        assert "missing: 1 node(s) (here: host1 (pid 101))" in str(result)


def test_a_host_that_is_not_there_is_told_by_what_the_user_named(deadline: Deadline) -> None:
    nodes = Nodes(by_c10d=True)
    nodes.start(_unnumbered(1), key=1)
    deadline.passes_once(lambda: any("with this --rdzv-endpoint?" in line for line in nodes.said))
    said = str(nodes.wait()[1])
    assert "host1 (pid 101) could not meet the node of --rdzv-endpoint at 127.0.0.1" in said
    assert "with this --rdzv-endpoint?" in said and "node 0" not in said


def test_another_number_of_nodes_is_refused(nodes: Nodes) -> None:
    nodes.start(_unnumbered(0, 3), key=0, is_host=True)
    listening_port(nodes)
    nodes.start(_unnumbered(1, 2), key=1)
    results = nodes.wait()
    assert "--nnodes: " in str(results[0]) and "--nnodes: " in str(results[1])


@pytest.mark.parametrize("host_has_rank", [True, False])
def test_both_kinds_of_rendezvous_do_not_mix(nodes: Nodes, host_has_rank: bool, deadline: Deadline) -> None:
    kinds = [node_of(0) if host_has_rank else _unnumbered(0), _unnumbered(1) if host_has_rank else node_of(1)]
    nodes.start(kinds[0], key=0, is_host=True)
    listening_port(nodes)
    nodes.start(kinds[1], key=1)
    deadline.passes_once(lambda: 1 in nodes.results)
    results = nodes.wait()
    assert isinstance(results[1], RefusedError)
    assert "it was started with" in str(results[1]) and "--rdzv-backend c10d" in str(results[1])


def test_a_node_that_refuses_itself_keeps_nobody_waiting(nodes: Nodes) -> None:
    nodes.start(_unnumbered(0, 3), key=0, is_host=True)
    assert tell_node_0(_unnumbered(1, 3), Terms(run_id="", **nodes.terms), "no interface ib0")
    assert str(nodes.wait()[0]) == "host1 (pid 101) refused to start: no interface ib0"


def test_which_machine_an_endpoint_names() -> None:
    assert is_here("127.0.0.1") and is_here("localhost") and is_here("127.0.1.1")
    assert not is_here("192.0.2.77") and not is_here("no-such-host.invalid")


def test_a_name_that_means_loopback_on_its_own_host_is_no_foreign_address(nodes: Nodes) -> None:
    """As Debian writes it into /etc/hosts."""
    opened, note = listen(Terms(run_id="", **{**nodes.terms, "address": "127.0.1.1"}))
    opened.close()
    assert note == ""
