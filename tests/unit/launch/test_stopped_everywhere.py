"""What all nodes hear of a stopped rank, and that it is the cause of the time-outs that follow."""

from dataclasses import replace

import pytest

from allranks.doctor import causes
from allranks.doctor.stopped import rank_stopped
from allranks.findings import Finding, Who
from allranks.launch.stopped_ranks import StoppedRanks

STOPPED = rank_stopped(Who(1, 1, "gpu1"), 4711, "T", 3.0)
TIMED_OUT = Finding(causes.PEER_GONE, "rank 0 (node 0) failed: Timed out waiting 8000ms for recv operation to complete")


class Channel:
    def __init__(self, own_node, stopped):
        self.own = type("Own", (), {"node_rank": own_node})
        self.stopped = stopped
        self.told = []

    def tell_stopped(self, findings):
        self.told.append(findings)


def test_it_is_said_once_and_told_to_the_others_when_it_changes():
    said, channel = [], Channel(1, {})
    ranks = StoppedRanks(channel, say=said.append)
    for own in [(), (STOPPED,), (STOPPED,), ()]:
        ranks.update(own)
    assert channel.told == [(STOPPED,), ()]
    assert len(said) == 2 and said[0].startswith("warning: rank 1 (node 1, gpu1, pid 4711) is stopped")
    assert said[1].startswith("rank 1 (node 1) runs again, after ")


def test_what_another_node_tells_is_said_here_too():
    said, channel = [], Channel(0, {1: (STOPPED,)})
    ranks = StoppedRanks(channel, say=said.append)
    ranks.update(())
    assert len(said) == 1 and channel.told == []


@pytest.mark.parametrize("code", [causes.PEER_GONE, causes.RANK_ABORTED, causes.RANK_EXIT, causes.NODE_ERROR])
@pytest.mark.parametrize("where", ["own", "elsewhere"])
def test_what_follows_of_a_stopped_rank_is_no_cause(code, where):
    ranks = StoppedRanks(Channel(0, {} if where == "own" else {1: (STOPPED,)}))
    cause = ranks.cause(replace(TIMED_OUT, code=code), (STOPPED,) if where == "own" else ())
    assert cause is not None and cause.severity == "error" and cause.who.rank == 1
    assert cause.what.endswith("; the others waited for it in vain")
    assert TIMED_OUT.what in cause.evidence[0].text
    # Told to another node, it is not told once more about itself.
    assert ranks.cause(cause, (STOPPED,)) is None


@pytest.mark.parametrize("code", [causes.RANK_KILLED, causes.RANK_ERROR, causes.NODE_LOST, causes.DISK])
def test_a_failure_of_its_own_is_the_cause_whoever_is_stopped(code):
    assert StoppedRanks(None).cause(replace(TIMED_OUT, code=code), (STOPPED,)) is None
