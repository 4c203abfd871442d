"""The actor between driver and workers, without Ray: its methods are plain ones."""

import pytest

from allranks.doctor.stopped import rank_stopped
from allranks.findings import Who
from allranks.launch.ray_train.coordinator import Command, Coordinator, Placement, RankExit, RankSpec
from allranks.launch.ray_train.watch import failed


@pytest.fixture
def coordinator():
    return Coordinator(
        RankSpec(
            run_id="r",
            world_size=2,
            config="",
            output_dir="out",
            directory="/work",
            environment={"HF_TOKEN": "hf_secret"},
            ray_directory="/data/out/ray",
            version="1",
        )
    )


SEAT = Placement("node0", 0, 0)


def test_each_attempt_has_its_own_rendezvous_point_and_its_own_ranks(coordinator):
    coordinator.begin("10.0.0.1", 1111)
    assert coordinator.enlist(0, SEAT).attempt == 1
    coordinator.announce(3, closed=True, committed=6)
    assert coordinator.fail({1: "ActorDiedError: gone"}), "Ray may try again"
    assert coordinator.status().placements == {}
    coordinator.begin("10.0.0.2", 2222)
    spec = coordinator.enlist(0, SEAT)
    assert (spec.attempt, spec.master_addr, spec.master_port) == (2, "10.0.0.2", 2222)
    assert coordinator.beat(0, []) == Command(stop=False, num_reports=0, closed=False)
    assert coordinator.status().committed == 6, "what is saved is the run's"


def test_a_stop_reaches_every_rank_also_after_a_restart(coordinator):
    coordinator.begin("10.0.0.1", 1)
    coordinator.stop()
    assert coordinator.beat(1, []).stop
    coordinator.begin("10.0.0.1", 2)
    assert coordinator.beat(0, []).stop


def test_ranks_that_hang_are_to_end_in_their_attempt_only(coordinator):
    coordinator.begin("10.0.0.1", 1)
    assert not coordinator.beat(1, []).hangs
    coordinator.end_hung(1)
    assert coordinator.beat(0, []).hangs and coordinator.beat(1, []).hangs
    assert coordinator.fail({0: "RuntimeError"}), "Ray may try again"
    coordinator.begin("10.0.0.1", 2)
    assert not coordinator.beat(0, []).hangs


def test_lines_are_fetched_once_and_in_order(coordinator):
    coordinator.beat(0, ["a", "b"])
    coordinator.beat(0, ["c"])
    assert coordinator.status().lines == ["a", "b", "c"]
    assert coordinator.status().lines == []


def test_the_first_cause_of_a_failure_is_told_first(coordinator):
    coordinator.begin("10.0.0.1", 1)
    coordinator.enlist(1, Placement("node1", 1, 0))
    coordinator.exited(RankExit(1, 0, "node0", 1, "RuntimeError: connection reset", "/run/rank-00000.log"))
    coordinator.exited(RankExit(1, 2, "node1", -9, "killed by SIGKILL"))
    coordinator.exited(RankExit(1, 3, "node1", 0))
    coordinator.fail({0: "RuntimeError: rank 0 …", 2: "RuntimeError: rank 2 …", 1: "\nThe actor died.\n more"})
    assert [one.what for one in failed(coordinator.status(), 1)] == [
        "rank 2 on node1 failed: killed by SIGKILL",
        "the worker of rank 1 on node1 was lost: The actor died.",
        "rank 0 on node0 failed: RuntimeError: connection reset",
    ]
    assert failed(coordinator.status(), 2) == []


@pytest.mark.parametrize("code", [2, 3])
def test_what_the_next_attempt_would_meet_again_is_not_tried_again(coordinator, code):
    coordinator.begin("10.0.0.1", 1)
    coordinator.exited(RankExit(1, 1, "node1", code, "ConfigError: …"))
    assert not coordinator.fail({1: "RuntimeError"})


def test_what_rank_0_has_printed_is_not_told_twice(coordinator):
    coordinator.begin("10.0.0.1", 1)
    coordinator.exited(RankExit(1, 0, "node0", 1, "no such model", is_shown=True))
    assert [one.what for one in failed(coordinator.status(), 1)] == ["rank 0 on node0 failed: its message is above"]


def test_secrets_do_not_show_in_a_repr(coordinator):
    assert "hf_secret" not in repr(coordinator.spec)


def test_a_stopped_rank_is_the_cause_of_the_others_time_out_and_of_nothing_after_a_restart(coordinator):
    found = rank_stopped(Who(1, 1, "gpu1"), 4711, "T", 3.0)
    coordinator.begin("10.0.0.1", 1)
    coordinator.beat(1, [], (found,))
    coordinator.beat(0, [])
    assert coordinator.status().stopped == (found,)
    coordinator.exited(RankExit(1, 0, "gpu0", 1, "Timed out waiting 8000ms for recv operation to complete"))
    coordinator.fail({0: "RuntimeError: rank 0 …"})
    first, then = failed(coordinator.status(), 1)
    assert first.code == "rank-stopped" and "the others waited for it in vain" in first.what
    assert then.what.startswith("rank 0 on gpu0 failed: Timed out")
    coordinator.begin("10.0.0.1", 2)
    assert coordinator.status().stopped == ()
    coordinator.beat(1, [], (found,))
    coordinator.beat(1, [], ())
    assert coordinator.status().stopped == ()


def test_an_error_of_a_ranks_own_has_no_stopped_rank_for_a_cause(coordinator):
    coordinator.begin("10.0.0.1", 1)
    coordinator.beat(1, [], (rank_stopped(Who(1, 1, "gpu1"), 4711, "T", 3.0),))
    coordinator.exited(RankExit(1, 0, "gpu0", 1, "the loss is not finite"))
    assert [one.code for one in failed(coordinator.status(), 1)] == ["rank-error"]


def test_what_workers_say_of_their_ranks_is_taken_once_and_forgotten_by_a_new_attempt(coordinator):
    coordinator.begin("10.0.0.1", 1234)
    coordinator.beat(0, [], (), {"node": 0, "t": 1.0})
    coordinator.beat(0, [], (), {"node": 0, "t": 2.0})
    coordinator.beat(1, [])
    assert coordinator.status().states == {0: {"node": 0, "t": 2.0}}
    assert coordinator.status().states == {}
    coordinator.beat(1, [], (), {"node": 1})
    coordinator.begin("10.0.0.1", 1235)
    assert coordinator.status().states == {}
