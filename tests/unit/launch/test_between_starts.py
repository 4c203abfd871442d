"""Nodes between two starts of all ranks: who is gone meanwhile is named, and not waited for. Over real sockets."""

import socket

import pytest

from allranks.doctor import causes
from allranks.doctor.attempt import Started
from allranks.doctor.diagnosis import OTHER_NODE
from allranks.doctor.failures import failures_of
from allranks.errors import RefusedError
from allranks.exit_codes import FAILED
from allranks.findings import Finding, Who
from allranks.launch.between_starts import BetweenStarts
from allranks.live.from_events import read_live
from allranks.live.live_file import write_live
from allranks.live.state import LiveTable, NodeState
from allranks.observe import RunDir
from tests.unit.rendezvous.nodes import Nodes, join_all, listening_port, node_of, say_hello, until

HANG = Finding(causes.HANG, "rank 1 never entered all_reduce", who=Who(1, 1))
LOST = "node 1 (host1) was lost: the connection was closed: its launcher was killed, or its machine went down"


@pytest.fixture
def nodes():
    nodes = Nodes()
    yield nodes
    nodes.leave()


@pytest.fixture
def started(tmp_path):
    """Of a node, whose record is its own."""

    def of(node):
        run = RunDir(tmp_path / f"disk{node}")
        run.logs(node).mkdir(parents=True)
        if node == 0:
            write_live(run, LiveTable(run_id="first", nodes=(NodeState(node=0, t=1.0),)))
        return Started(run, "first", node, "torchrun", 1, 3, num_nodes=3)

    return of


def between_of(joined, started):
    """On each node, after a hang for which all are to start again."""
    joined[0].end_all(HANG)
    found = {}
    for one in joined:
        until(one.stop_finding)
        found[one.own.node_rank] = BetweenStarts()
        found[one.own.node_rank].keep(one, started(one.own.node_rank))
    return found


def test_a_launcher_that_is_gone_between_two_starts_is_named_on_all_others_and_ends_their_waiting(nodes, started):
    nodes.start(node_of(0, 3))
    nodes.start(node_of(2, 3))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1, 3))
        joined = list(nodes.wait().values())
        between = between_of(sorted(joined, key=lambda one: one.own.node_rank), started)
        assert [one.why() for one in between.values()] == [None, None]
    again = Nodes(join_seconds=3600.0)
    again.start(node_of(0, 3), refused_elsewhere=between[0].why)
    again.start(node_of(2, 3), refused_elsewhere=between[2].why)
    for rank, result in again.wait().items():
        assert isinstance(result, RefusedError)
        until(between[rank].why)
        assert between[rank].why() == LOST
        verdict = between[rank].verdict()
        assert verdict is not None and verdict.exit_code == FAILED and LOST in verdict.message
        assert (verdict.reason.code, verdict.reason.who.node) == (causes.NODE_LOST, 1)
    record = started_run(between[0])
    table = read_live(record)
    assert table.ended is not None and (table.ended.exit_code, table.ended.finding.what) == (FAILED, LOST)
    assert [one.restart.verdict for one in failures_of(record)] == [OTHER_NODE]
    assert started_run(between[2]).end(2).exists()


def started_run(between):
    return between._started.run


@pytest.mark.parametrize("gone", [0, 1])
def test_a_node_that_leaves_between_two_starts_says_why(nodes, started, gone):
    joined = join_all(nodes, node_of(0), node_of(1))
    between = between_of(joined, started)
    with pytest.raises(RefusedError), between[gone]:
        raise RefusedError("the config has changed")
    other = between[1 - gone]
    until(other.why)
    assert other.why() == f"node {gone} (host{gone}): the config has changed"


def test_nodes_that_have_met_again_are_not_gone(nodes, started):
    joined = join_all(nodes, node_of(0), node_of(1))
    between = between_of(joined, started)
    between[1].have_met()
    between[0].have_met()
    assert [one.why() for one in between.values()] == [None, None]
    assert [one.verdict() for one in between.values()] == [None, None]
    assert not any(one._thread.is_alive() for one in joined), "nothing of the first start is left"
