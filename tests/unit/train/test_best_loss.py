"""Which evaluation is the best so far: one that is not a number never is, and never stands in the way of another."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from allranks.errors import AllranksError
from allranks.train import best_loss
from allranks.train.loop import Limits
from allranks.train.record_steps import _refuse_bad_loss


def evaluated(monkeypatch, losses, *, best=None, patience=None):
    """Evaluate so often; for each time the best loss, the best checkpoint, and whether training ends."""
    coming = iter(losses)
    monkeypatch.setattr(best_loss, "measure", lambda _: next(coming))
    monkeypatch.setattr(best_loss, "save", lambda _: None)
    loop = SimpleNamespace(
        stats=SimpleNamespace(flush=list),
        best_loss=best,
        best_checkpoint=None,
        evals_without_improvement=0,
        save_best=True,
        checkpointer=SimpleNamespace(directory=Path("checkpoints"), protected=set()),
        limits=Limits(loss_threshold=None, loss_patience=3, eval_patience=patience),
        step=0,
    )
    seen = []
    for _ in losses:
        loop.step += 1
        ends = best_loss.evaluate_and_compare(loop)
        seen.append((loop.best_loss, loop.best_checkpoint, ends))
    return seen


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_first_loss_that_is_no_number_is_beaten_by_the_next(monkeypatch, bad):
    seen = evaluated(monkeypatch, [bad, 3.0, bad, 2.0, 2.5])
    assert [best for best, *_ in seen] == [None, 3.0, 3.0, 2.0, 2.0]
    assert [name for _, name, _ in seen] == [None, *["step-00000002"] * 2, *["step-00000004"] * 2]


def test_one_that_an_earlier_version_kept_is_beaten_too(monkeypatch):
    assert evaluated(monkeypatch, [3.0], best=math.nan)[0][0] == 3.0


def test_patience_counts_what_is_no_number_as_no_improvement(monkeypatch):
    seen = evaluated(monkeypatch, [math.nan, 3.0, math.nan, math.nan], patience=2)
    assert [ends for *_, ends in seen] == [False, False, False, True]


def test_the_watchdog_does_not_take_a_step_without_targets_for_a_good_one():
    loop = SimpleNamespace(limits=Limits(1.0, 3, None), high_losses=0, strategy=SimpleNamespace(skips_overflows=False))
    for loss in (5.0, 5.0, math.nan):
        _refuse_bad_loss(loop, SimpleNamespace(step=1, loss=loss, grad_norm=1.0, bad_ranks=()))
    with pytest.raises(AllranksError, match="3 steps running"):
        _refuse_bad_loss(loop, SimpleNamespace(step=2, loss=5.0, grad_norm=1.0, bad_ranks=()))
