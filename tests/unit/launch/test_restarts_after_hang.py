"""Whether all ranks are to be started again after a hang, and which launches can do that."""

import json

import pytest

from allranks.checkpoint.commit import MARKER, checkpoint_path
from allranks.cluster.restarted import RESTARTS, is_restarted
from allranks.config import RunConfig
from allranks.doctor import causes
from allranks.doctor.attempt import Started
from allranks.doctor.failures import seen_before
from allranks.doctor.verdict import Verdict
from allranks.errors import UsageError
from allranks.findings import Finding, Who
from allranks.launch import restart
from allranks.launch.restart import refuse_restart
from allranks.launch.restarts import Restarts
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.live import LiveTable
from allranks.observe import EventLog, RunDir
from allranks.observe.events import StepEvent

TWO = {"nnodes": "2", "node_rank": 0, "master_addr": "node0"}


def hang(rank: int = 1, seconds: int = 241) -> Finding:
    what = f"rank {rank} (node 1, gpu1) has been in phase train after step 6 for {seconds} s"
    return Finding(causes.HANG, what, who=Who(1, rank, "gpu1"))


def at(step: int | None, attempt: int = 1) -> LiveTable:
    return LiveTable(step=step, attempt=attempt)


@pytest.fixture
def restarts(tmp_path):
    return Restarts(RunDir(tmp_path), 3)


def test_what_hangs_at_other_steps_is_started_again_as_often_as_it_may_be(restarts):
    # The attempts that a launcher started by itself, after a crash, count.
    assert [restarts.after(hang(), at(step, attempt)) for step, attempt in ((6, 1), (9, 3), (12, 4))] == [1, 3, None]


def test_the_same_hang_after_the_same_step_again_is_hopeless(restarts):
    assert restarts.after(hang(), at(6, 1)) == 1
    assert restarts.after(hang(seconds=244), at(6, 2)) is None


def test_a_restart_that_hangs_before_it_has_done_a_step_hangs_after_the_step_that_it_began_at(restarts, tmp_path):
    assert restarts.after(hang(), at(6, 1)) == 1
    path = checkpoint_path(tmp_path / "checkpoints", 6)
    path.mkdir(parents=True)
    (path / MARKER).write_text(json.dumps({"files": {}}))
    assert restarts.after(hang(), at(None, 2)) is None


def test_another_hang_after_the_same_step_is_not(restarts):
    assert restarts.after(hang(), at(6, 1)) == 1
    other = Finding(causes.HANG, "what rank 0 sends to rank 1 does not arrive")
    assert restarts.after(other, at(6, 2)) == 2


def test_the_same_in_an_earlier_start_of_the_run_is_hopeless_too(restarts, tmp_path):
    run = RunDir(tmp_path)
    run.logs(0).mkdir(parents=True)
    log = EventLog(run.events(0), 0, run_id="before")
    log.write(StepEvent(step=6))
    log.close()
    seen_before(Verdict(1, hang(), "error"), Started(run, "before", 0, "torchrun", 1, 2))
    assert restarts.after(hang(), at(6)) is None
    assert restarts.after(hang(), at(7)) == 1


def test_before_any_rank_is_known(restarts):
    assert restarts.after(hang(), LiveTable()) == 1


KEYS = {"base_model": "m", "datasets": [{"path": "d", "type": "chat_template"}], "learning_rate": 0.1, "max_steps": 9}
RESTART = RunConfig.from_resolved({**KEYS, "on_hang": "restart"}, source="-")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "on_hang: restart needs --max-restarts N"),
        (TWO, "on_hang: restart needs --max-restarts N"),
        ({"nnodes": "2", "rdzv_endpoint": "node0", "max_restarts": 2}, "with --rdzv-backend c10d"),
        ({"nnodes": "2:4", "rdzv_backend": "c10d", "rdzv_endpoint": "node0"}, "with --rdzv-backend c10d"),
    ],
)
def test_a_launch_that_cannot_start_them_again_is_refused_by_name(options, said):
    launch = resolve(LaunchOptions(**options), num_gpus=0)
    with pytest.raises(UsageError, match=said):
        refuse_restart(RESTART, launch)
    refuse_restart(RunConfig.from_resolved(KEYS, source="-"), launch)


@pytest.mark.parametrize("options", [{"max_restarts": 2}, {**TWO, "max_restarts": 2}])
def test_a_launch_that_can_is_not(options):
    refuse_restart(RESTART, resolve(LaunchOptions(**options), num_gpus=0))


@pytest.mark.parametrize(
    ("env", "is_again"),
    [
        ({}, False),
        ({RESTARTS: "0", "TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({RESTARTS: "1", "TORCHELASTIC_RESTART_COUNT": "0"}, True),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, True),
    ],
)
def test_a_rank_knows_that_it_was_started_before(env, is_again):
    assert is_restarted(env) == is_again


@pytest.mark.parametrize(("asked", "again"), [(600.0, 120.0), (30.0, 30.0)])
def test_nodes_that_were_just_there_are_not_waited_for_as_long_as_at_the_first_start(monkeypatch, asked, again):
    verdicts = iter([Verdict(1, hang(), "hung", restarts=1), Verdict(1, hang(), "hung", restarts=2), Verdict(0)])
    launches = []
    monkeypatch.setattr(restart, "attempt", lambda launch, work, between: launches.append(launch) or next(verdicts))
    first = resolve(LaunchOptions(**TWO, join_seconds=asked, max_restarts=2))
    assert restart.told_restarts(first, lambda launch: None) == 0
    assert [(one.num_restarts, one.join_seconds) for one in launches] == [(0, asked), (1, again), (2, again)]
