"""Trackers of a run on two ranks that is cut off and resumed: rank 0 alone reports, every step once."""

import signal

import pytest

from tests.patience import TIMEOUT_SECONDS
from tests.unit.observe.tracker_readers import tensorboard_curve, wandb_curve


def test_a_cut_off_run_goes_on_in_the_same_curves(start_forked, run_forked, strike, tmp_path):
    keys = {
        "max_steps": 30,
        "save_strategy": "steps",
        "save_steps": 5,
        "save_async": False,
        "logging_steps": 1,
        "use_tensorboard": True,
        "wandb_project": "p",
        "wandb_mode": "offline",
    }
    trackers = tmp_path / "run" / "trackers"
    # W&B takes seconds to begin; of a start that is over before that there is nothing.
    strike(12, rank=0, awaits=(trackers / "wandb/offline-run-*", tmp_path / "run/checkpoints/*/COMPLETE"))
    ranks = start_forked(2, **keys)
    ranks.processes[0].join(TIMEOUT_SECONDS)
    ranks.kill()
    assert ranks.processes[0].exitcode == -signal.SIGKILL, ranks.output.read_text()
    done = run_forked(2, auto_resume_from_checkpoints=True, **keys)

    assert len(list((trackers / "tensorboard").iterdir())) == 2, "one file a start: rank 1 writes none"
    assert len(list((trackers / "wandb").glob("offline-run-*"))) == 2
    losses = done.losses()
    assert sorted(losses) == list(range(1, 31)), done.output
    for curve in (tensorboard_curve(tmp_path / "run", "train/loss"), wandb_curve(tmp_path / "run", "train/loss")):
        assert [step for step, _ in curve] == sorted(losses)
        assert dict(curve) == pytest.approx(losses, rel=1e-5)
    assert not [event for event in done.events("warning") if "tracker" in event.message]
