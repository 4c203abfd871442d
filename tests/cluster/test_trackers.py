"""Trackers of a run on two ranks that is cut off and resumed: rank 0 alone reports, every step once."""

import time

import pytest

from tests.unit.observe.tracker_readers import tensorboard_curve, wandb_curve


def test_a_cut_off_run_goes_on_in_the_same_curves(start_forked, run_forked, tmp_path):
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
    ranks = start_forked(2, **keys)
    # W&B takes seconds to begin; of a start that is over before that there is nothing.
    while not (list((trackers / "wandb").glob("offline-run-*")) and list(tmp_path.glob("run/checkpoints/*/COMPLETE"))):
        assert ranks.is_running(), "the run was over before W&B began"
        time.sleep(0.05)
    ranks.kill()
    done = run_forked(2, auto_resume_from_checkpoints=True, **keys)

    assert len(list((trackers / "tensorboard").iterdir())) == 2, "one file a start: rank 1 writes none"
    assert len(list((trackers / "wandb").glob("offline-run-*"))) == 2
    losses = done.losses()
    assert sorted(losses) == list(range(1, 121)), done.output
    for curve in (tensorboard_curve(tmp_path / "run", "train/loss"), wandb_curve(tmp_path / "run", "train/loss")):
        assert [step for step, _ in curve] == sorted(losses)
        assert dict(curve) == pytest.approx(losses, rel=1e-5)
    assert not [event for event in done.events("warning") if "tracker" in event.message]
