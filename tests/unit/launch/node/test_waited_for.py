"""Another node's rank has waited in vain: the ranks that still run here are told as what it waited for."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from allranks.doctor import causes
from allranks.findings import Finding, Who
from allranks.launch.node.waited_for import WaitedFor, still_running

VAIN = Finding(
    causes.PEER_GONE,
    "rank 0 (node 0) waited in vain for another rank, and ended with exit code 1: RuntimeError: Timed out waiting "
    "20000ms for recv operation to complete",
    who=Who(0, 0),
)


class Told:
    """This node among the peers; what it tells them."""

    def __init__(self, node: int) -> None:
        self.node, self.own_host, self.findings = SimpleNamespace(name=node), "gpu1", []

    def tell_cause(self, finding: Finding) -> None:
        self.findings.append(finding)


@pytest.fixture
def rank():
    child = subprocess.Popen(
        [sys.executable, "-c", "while True: pass"], env={**os.environ, "RANK": "1", "LOCAL_RANK": "0"}
    )
    yield psutil.Process(child.pid)
    child.kill()
    child.wait()


def test_the_rank_that_still_runs_is_what_the_other_waited_for(rank):
    peers = Told(1)
    waited = WaitedFor(peers)
    waited.seen([rank])
    found = waited.explained(VAIN)
    assert found.what.startswith(
        "rank 1 (node 1, gpu1) did not come to the collective in which rank 0 (node 0) has waited in vain: it ran on ("
    )
    assert (found.code, found.who) == (causes.HANG, Who(1, 1, "gpu1"))
    assert peers.findings == [found]
    assert waited.explained(VAIN) is VAIN and len(peers.findings) == 1  # it is told once


@pytest.mark.parametrize(
    "lost",
    [
        None,
        Finding(causes.RANK_KILLED, VAIN.what, who=Who(0, 0)),
        Finding(causes.PEER_GONE, "rank 0 (node 0) lost another rank: Connection closed by peer", who=Who(0, 0)),
        Finding(causes.PEER_GONE, VAIN.what, who=Who(1, 1)),  # of this node itself
    ],
)
def test_of_other_ends_nothing_is_told(rank, lost):
    peers = Told(1)
    waited = WaitedFor(peers)
    waited.seen([rank])
    assert waited.explained(lost) is lost
    assert peers.findings == []


def test_a_node_whose_ranks_have_ended_has_nothing_to_tell(rank):
    peers = Told(1)
    waited = WaitedFor(peers)
    waited.seen([])
    assert waited.explained(VAIN) is VAIN
    rank.kill()
    rank.wait()
    gone = WaitedFor(peers)
    gone.seen([rank])
    assert gone.explained(VAIN) is VAIN
    assert peers.findings == []


def test_of_several_ranks_it_is_one():
    found = still_running(VAIN, {9: "running, 100% of a CPU", 8: "sleeping, 0% of a CPU"}, 1, "gpu1")
    assert found.what.startswith("one of ranks 8, 9 (node 1, gpu1) did not come to the collective")
    assert (found.who.node, found.who.rank) == (1, None)


def test_ranks_that_had_ended_are_what_another_node_lost(rank):
    peers, asked = Told(1), []
    left = Finding(causes.RANK_LEFT, "rank 1 (node 1) ended with exit code 0", who=Who(1, 1))

    def look(lost, ranks, alive):
        asked.append((lost, dict(ranks), alive))
        return None if alive else left

    lost = Finding(causes.PEER_GONE, "rank 0 (node 0) lost another rank, and ended with exit code 1", who=Who(0, 0))
    waited = WaitedFor(peers, look)
    waited.seen([rank])
    assert waited.explained(lost) is lost and peers.findings == []
    again = WaitedFor(peers, look)
    again.seen([rank])
    rank.kill()
    rank.wait()
    assert again.explained(lost) is left and peers.findings == [left]
    assert asked == [(lost, {rank.pid: 1}, frozenset({rank.pid})), (lost, {rank.pid: 1}, frozenset())]
