"""Trackers of a run on two ranks that is cut off and resumed: rank 0 alone reports, every step once."""

import time

import pytest

from allranks.observe import RunDir
from tests.cluster.test_launch import finish, rank_process, wait_for_steps
from tests.unit.observe.tracker_readers import tensorboard_curve, wandb_curve


def test_a_cut_off_run_goes_on_in_the_same_curves(start, run, tmp_path):
    keys = {
        "max_steps": 120,
        "save_strategy": "steps",
        "save_steps": 5,
        "save_async": False,
        "logging_steps": 1,
        "use_tensorboard": True,
        "wandb_project": "p",
        "wandb_mode": "offline",
    }
    trackers = tmp_path / "run" / "trackers"
    launcher = start("--nproc-per-node", "2", **keys)
    wait_for_steps(RunDir(tmp_path / "run"), launcher, ranks=2, steps=8)
    # W&B takes seconds to begin; of a start that is over before that there is nothing.
    while not list((trackers / "wandb").glob("offline-run-*")):
        assert launcher.poll() is None, "the run was over before W&B began"
        time.sleep(0.05)
    rank_process(launcher, 0).kill()
    (output,) = finish(launcher)
    done = run("--nproc-per-node", "2", "--auto-resume-from-checkpoints", "true", **keys)

    assert len(list((trackers / "tensorboard").iterdir())) == 2, "one file a start: rank 1 writes none"
    assert len(list((trackers / "wandb").glob("offline-run-*"))) == 2
    losses = done.losses()
    assert sorted(losses) == list(range(1, 121)), output
    for curve in (tensorboard_curve(tmp_path / "run", "train/loss"), wandb_curve(tmp_path / "run", "train/loss")):
        assert [step for step, _ in curve] == sorted(losses)
        assert dict(curve) == pytest.approx(losses, rel=1e-5)
    assert not [event for event in done.events("warning") if "tracker" in event.message]
