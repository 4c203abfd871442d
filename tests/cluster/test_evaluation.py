"""Evaluation, the best checkpoint, and the losses that end a run."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from allranks.checkpoint import commit
from allranks.export.export import export
from allranks.inference.evaluate import evaluate
from tests.cluster.conftest import ENVIRONMENT, largest_difference
from tests.patience import TIMEOUT_SECONDS

EVALUATING = {"val_set_size": 0.2, "eval_steps": 3, "max_steps": 12}


def eval_losses(run):
    return {event.step: event.eval_loss for event in run.events("eval")}


def test_the_evaluation_does_not_depend_on_the_ranks(run_forked, tmp_path):
    keys = {**EVALUATING, "save_strategy": "steps", "save_steps": 6, "save_async": False}
    alone = run_forked(output_dir=tmp_path / "alone", **keys)
    two = run_forked(2, fsdp_version=2, eval_batch_size=3, **keys)
    assert sorted(eval_losses(alone)) == [3, 6, 9, 12]
    assert largest_difference(eval_losses(two), eval_losses(alone)) < 1e-5
    for trained in (alone, two):  # what two ranks saved, too, is read by one process here, and the other way round
        again = {step: evaluate(str(trained.directory.path), step=step).data[0].score.loss for step in (6, 12)}
        assert largest_difference(again, {step: eval_losses(alone)[step] for step in again}) < 1e-5
    assert largest_difference({12: evaluated_by_two_ranks(alone)}, {12: eval_losses(alone)[12]}) < 1e-5


def evaluated_by_two_ranks(trained):
    """The loss that `allranks evaluate` prints under a torchrun of one's own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "allranks"]
    done = subprocess.run(
        [*command, "evaluate", str(trained.directory.path), "--json"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"][0]["loss"]


def test_the_best_checkpoint_is_kept_and_becomes_the_model_when_training_stops_improving(run_forked, tmp_path):
    # A rate that grows out of bounds: the loss falls at first and rises then.
    keys = {"max_steps": 60, "warmup_steps": 60, "learning_rate": 3.0, "lr_scheduler": "constant_with_warmup"}
    done = run_forked(
        **{**EVALUATING, **keys, "eval_steps": 2},
        save_strategy="best",
        save_total_limit=1,
        early_stopping_patience=3,
    )
    losses = eval_losses(done)
    best = min(losses, key=losses.__getitem__)
    assert max(losses) == best + 3 * 2, "it stops after three evaluations without improvement"
    assert f"stopped at step {max(losses)}: 3 evaluations without improvement" in done.output
    kept = [commit.step_of(path) for path in commit.complete_checkpoints(done.directory.checkpoints)]
    assert best in kept and len(kept) <= 2

    export(done.directory.checkpoint(best), tmp_path / "best")
    written = load_file(done.directory.path / "model" / "model.safetensors")
    expected = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(written[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "launched", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["forked", "launched"]
)
def test_a_loss_that_is_not_finite_ends_the_run_with_its_step_and_rank_and_is_never_saved(request, launched):
    keys = {
        "learning_rate": 1e30,
        "lr_scheduler": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 0,
        "weight_decay": 0.0,
    }
    keys = {**keys, "save_strategy": "steps", "save_steps": 1}
    if launched:
        failed = request.getfixturevalue("run")("--nproc-per-node", "2", expect=1, **keys)
    else:
        failed = request.getfixturevalue("run_forked")(2, expect=1, **keys)
    assert "not finite" in failed.output and "rank" in failed.output and "Traceback" not in failed.output
    bad = max(event.step for event in failed.events("step"))
    assert f"step {bad}: the loss is not finite" in failed.output
    assert all(commit.step_of(path) < bad for path in commit.complete_checkpoints(failed.directory.checkpoints))


def test_the_watchdog_stops_a_run_whose_loss_stays_high(run_forked):
    failed = run_forked(expect=1, loss_watchdog_threshold=3.0, loss_watchdog_patience=4)
    assert "step 4: the loss" in failed.output and "loss_watchdog_threshold (3.0) for 4 steps running" in failed.output
