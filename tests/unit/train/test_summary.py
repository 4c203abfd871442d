"""The last lines of a run are made from its own record: this start's work, the whole run's losses."""

import math
from types import SimpleNamespace

import pytest

from allranks.checkpoint import commit
from allranks.observe import EventLog, RunDir
from allranks.observe.events import EvalEvent, StepEvent
from allranks.train.loop import TrainingEnd
from allranks.train.summary import summary


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path / "run")


def recorded(run_dir, losses, *, evaluations=(), tokens=1000, seconds=0.5):
    events = EventLog(run_dir.events(0), 0)
    for step, loss in losses:
        events.write(StepEvent(step=step, loss=loss, tokens=tokens, seconds=seconds))
    for step, loss in evaluations:
        events.write(EvalEvent(step=step, eval_loss=loss))


def lines_of(run_dir, step, *, reason="done", first_step=1, seconds=65.0, **loop):
    known = {"traffic": None, "full_speed": None, "best_checkpoint": None, "evals_without_improvement": 2}
    made = SimpleNamespace(step=step, last_loss=1.0, **{**known, **loop})
    end = TrainingEnd(reason, "SIGTERM" if reason == "preempted" else None)
    return summary(made, end, run_dir, None, first_step=first_step, seconds=seconds)


def test_what_a_run_took_and_how_its_loss_went(run_dir, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    evaluations = [(10, 3.0), (20, 2.0), (30, 2.5), (40, 2.25)]
    recorded(run_dir, [(step, 5.0 - step / 10) for step in range(1, 41)], evaluations=evaluations)
    lines = lines_of(run_dir, 40, full_speed=4000.0)
    assert lines[0] == "done: 40 steps, loss 1.0000"
    assert " ".join(lines[1].split()) == "time 0:01:05 from start to end, 0:00:20 of it in 40 steps"
    assert " ".join(lines[2].split()) == "tokens 40,000, 2000 tokens/s in the mean of these steps, MFU 50%"
    assert " ".join(lines[3].split()) == "loss 4.4500 (mean of steps 1 to 10) -> 1.4500 (mean of steps 31 to 40)"
    assert (
        " ".join(lines[4].split())
        == "eval_loss 3.0000 at step 10 -> 2.0000 at step 20 (best) -> 2.2500 at step 40; 4 in all"
    )
    picture = "\n".join(lines)
    assert "step 1 " in picture and "step 40" in picture and "┤" in picture
    assert max(map(len, lines[5:-1])) <= 80


def test_a_resumed_run_tells_its_own_work_and_the_losses_of_all_steps(run_dir):
    # Steps 21 to 25 were done, lost, and done again from step 20; 30 is of a trajectory that was left.
    recorded(run_dir, [(step, 9.0) for step in range(1, 26)] + [(30, 99.0)], seconds=50.0)
    recorded(run_dir, [(step, 1.0) for step in range(21, 29)], seconds=1.0)
    told = "\n".join(lines_of(run_dir, 28, first_step=21))
    assert "0:00:08 of it in 8 steps" in told and "8,000, 1000 tokens/s" in told and "99" not in told
    assert "9.0000 (mean of steps 1 to 10) -> 2.6000 (mean of steps 19 to 28)" in told


@pytest.mark.parametrize("losses", [[], [(1, 2.0)], [(1, math.nan), (2, math.nan)]])
def test_a_run_of_few_steps_or_without_losses_ends_in_fewer_lines(run_dir, losses):
    recorded(run_dir, losses)
    told = "\n".join(lines_of(run_dir, len(losses)))
    assert "nan" not in told and "┤" not in told and "  loss" not in told and str(run_dir.path) in told


def test_the_curve_is_drawn_with_what_the_terminal_can_show(run_dir, monkeypatch):
    recorded(run_dir, [(step, 1 / step) for step in range(1, 30)])
    monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding="iso-8859-1", fileno=lambda: 1))
    told = "\n".join(lines_of(run_dir, 29))
    assert told.isascii() and "*" in told


def test_where_things_are_and_what_to_do_next(run_dir):
    checkpoint = commit.checkpoint_path(run_dir.checkpoints, 3)
    checkpoint.mkdir(parents=True)
    commit.commit(checkpoint, {}, step=3)
    recorded(run_dir, [(step, 2.0) for step in range(1, 4)])
    done, early = lines_of(run_dir, 3), lines_of(run_dir, 3, reason="early", best_checkpoint="step-00000002")
    assert any(str(checkpoint) in line for line in done) and f"allranks chat {run_dir.path} --compare base" in done[-1]
    assert any(line.endswith(f"allranks export {run_dir.path} --step 2") for line in early)
    preempted = lines_of(run_dir, 3, reason="preempted")
    assert "start the same command again" in preempted[0] and not any("chat" in line for line in preempted)
