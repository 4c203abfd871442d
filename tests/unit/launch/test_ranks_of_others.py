"""Nodes that do not see each other's logs name the rank that entered another collective all the same."""

import json

import pytest

from allranks.doctor.attempt import Ended, Started
from allranks.doctor.program_end import program_end
from allranks.findings import Finding, Who
from allranks.launch.ranks_of_others import tell_of_ranks, with_others
from allranks.observe import RunDir
from tests.unit.doctor.test_program_end import ABORTED, LOST, NINE, SCALAR, TRACEBACK
from tests.unit.rendezvous.nodes import Nodes, join_all, node_of, together

ABORT = Finding(
    "rank-aborted",
    "rank 1 (node 1) was aborted in a collective at /home/ana/train.py:9 in main: gloo does that where ranks differ",
    who=Who(1, 1),
)


@pytest.fixture
def joined():
    nodes = Nodes()
    yield join_all(nodes, *(node_of(rank, 3) for rank in range(3)))
    nodes.leave()


@pytest.fixture
def started(tmp_path):
    """A rank a node, of which rank 1 is aborted, and rank 2 entered what it never had: on one disk, or each its own."""

    def start(node, disk):
        run = RunDir(tmp_path / f"disk{disk}")
        run.logs(node).mkdir(parents=True)
        run.started(node).write_text("{}")
        run.log(node, node).write_text(ABORTED if node == 1 else TRACEBACK.format(9, "loss.backward()", LOST))
        told = {"entered": NINE if node == 2 else SCALAR, "times": 0 if node == 2 else 3}
        if node != 1:
            run.entered(node, node).write_text(json.dumps({**told, "usual": SCALAR, "usual_times": 3}))
        return Started(run, "r", node, "torchrun", 1, 3, num_nodes=3, ranks=range(node, node + 1), is_ours=False)

    return start


def answers(joined, starts):
    """What each node says in the end, and what it knows of others' ranks."""

    def ends(rendezvous):
        start = starts[rendezvous.own.node_rank]
        tell_of_ranks(rendezvous, start, ABORT)
        known = with_others(rendezvous, start, ABORT)
        return program_end(known, Ended(-9, None, True, ABORT)).reason, known.others

    return together(joined, ends)


def test_all_nodes_name_the_rank_though_each_sees_its_own_logs_alone(joined, started):
    for reason, others in answers(joined, [started(node, disk=node) for node in range(3)]):
        assert others
        assert (reason.who.rank, reason.who.node) == (2, 2)
        assert f"rank 2 (node 2) entered {NINE}, where {SCALAR} had come 3 times before" in reason.what
        assert "rank 0 (node 0) was at /home/ana/train.py:9 in main" in reason.remedy


def test_nodes_that_see_all_logs_ask_nobody(joined, started):
    for reason, others in answers(joined, [started(node, disk=0) for node in range(3)]):
        assert not others and reason.who.rank == 2


def test_of_another_failure_nobody_is_asked(joined, started):
    starts = [started(node, disk=node) for node in range(3)]
    killed = Finding("rank-killed", "rank 1 (node 1) failed first: killed by SIGKILL", who=Who(1, 1))
    assert together(joined, lambda one: with_others(one, starts[one.own.node_rank], killed).others) == [()] * 3
