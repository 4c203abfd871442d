"""How one node ends decides what the others' terminals advise, over a real rendezvous."""

import signal

import pytest

from allranks.doctor import causes
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.training_end import training_end
from allranks.doctor.verdict import Verdict, failed, interrupted, left_by, not_stopped_in_time
from allranks.findings import Finding, Who
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.observe import RunDir
from tests.unit.rendezvous.nodes import Nodes, join_all, node_of, until

AGAIN, MEND = "start the same command again on all nodes", "the same command would end in the same way"
CODES = sorted(value for name, value in vars(causes).items() if name.isupper() and isinstance(value, str))


@pytest.fixture
def joined():
    nodes = Nodes()
    yield join_all(nodes, node_of(0), node_of(1))
    nodes.leave()


def part(path, node):
    run = RunDir(path / f"node{node}")
    run.logs(node).mkdir(parents=True)
    return Started(run, "now", node, "torchrun", 1, 2, num_nodes=2)


def end(rendezvous, started, verdict, how):
    """As `attempt` ends: the peers are told, and this node leaves."""
    peers = Peers(Node(started.node, started.run, "now", "launch", []), rendezvous)
    told = peers.ended(verdict, started, how)
    rendezvous.leave(peers.code, peers.finding)
    return told


def verdicts(started):
    left = left_by(started)
    yield from (failed(1, Finding(code, f"it was {code}", who=Who(started.node, 0)), left) for code in CODES)
    yield failed(1, not_stopped_in_time(started.node), left)
    yield failed(130, not_stopped_in_time(started.node), left)
    yield interrupted(signal.SIGINT, started.node, "the steps after the newest checkpoint are lost")


NUM_VERDICTS = len(CODES) + 3


@pytest.mark.parametrize("number", range(NUM_VERDICTS))
def test_the_other_nodes_advise_what_the_first_advises(joined, tmp_path, monkeypatch, number):
    monkeypatch.setattr("allranks.rendezvous.rendezvous._WORD_SECONDS", 0.05)
    first = number % 2
    here, there = part(tmp_path, first), part(tmp_path, 1 - first)
    verdict = list(verdicts(here))[number]
    own = end(joined[first], here, verdict, Ended(1, None, True))
    other = joined[1 - first]
    until(other.stop_finding)
    lost = other.stop_finding()
    assert lost.code == verdict.reason.code and lost.who.node == first
    how = Ended(137, None, True, lost)
    told = end(other, there, training_end(there, how), how)
    expected, wrong = (AGAIN, MEND) if causes.may_pass(verdict.reason.code) else (MEND, AGAIN)
    assert expected in told.message and wrong not in told.message
    assert wrong not in own.message
    assert told.message.startswith(f"error: node {first} (host{first}): {verdict.reason.what}")


@pytest.mark.parametrize("code", [0, 75])
def test_an_end_that_is_none_of_a_failure_is_told_to_nobody(joined, tmp_path, code):
    here = part(tmp_path, 0)
    end(joined[0], here, Verdict(code), Ended(0, None, False))
    until(lambda: joined[1].parting)
    assert joined[1].stop_finding() is None
