"""What Ray hears of a run, taken from rank 0's events."""

from allranks.launch.ray_train.tail import METRICS, Report, Tail
from allranks.observe import EventLog
from allranks.observe.events import CheckpointEvent, EvalEvent, PhaseEvent, StepEvent


def metrics(*, eval_loss=None, **measured):
    """All that Ray hears of such a step, and of an evaluation after it."""
    step = StepEvent(**measured)
    return {name: getattr(step, name) for name in METRICS} | ({} if eval_loss is None else {"eval_loss": eval_loss})


def log_and_tail(tmp_path):
    log = EventLog(tmp_path / "rank-00000.jsonl", 0)
    log.write(StepEvent(step=99, loss=9.0))  # of the attempt before
    return log, Tail(log.path, log.path.stat().st_size)


def test_of_several_steps_the_last_is_reported(tmp_path):
    log, tail = log_and_tail(tmp_path)
    assert tail.read() == []
    log.write(PhaseEvent(phase="train"))
    log.write(StepEvent(step=1, loss=3.0, grad_norm=1.0, data_seconds=0.1))
    log.write(StepEvent(step=2, loss=2.0, grad_norm=0.5))
    assert tail.read() == [Report(metrics(step=2, loss=2.0, grad_norm=0.5))]
    assert tail.read() == []


def test_a_checkpoint_comes_with_the_metrics_of_its_own_step(tmp_path):
    log, tail = log_and_tail(tmp_path)
    log.write(StepEvent(step=4, loss=3.0))
    log.write(CheckpointEvent(step=4, state="started", path="/run/checkpoints/step-00000004"))
    log.write(StepEvent(step=5, loss=2.0))
    log.write(CheckpointEvent(step=4, state="committed", path="/run/checkpoints/step-00000004"))
    assert tail.read() == [
        Report(metrics(step=4, loss=3.0), "/run/checkpoints/step-00000004"),
        Report(metrics(step=5, loss=2.0)),
    ]


def test_a_step_that_a_checkpoint_told_is_not_told_again(tmp_path):
    log, tail = log_and_tail(tmp_path)
    log.write(StepEvent(step=4, loss=3.0))
    log.write(CheckpointEvent(step=4, state="started", path="c"))
    log.write(CheckpointEvent(step=4, state="committed", path="c"))
    assert tail.read() == [Report(metrics(step=4, loss=3.0), "c")]
    assert tail.read() == []


def test_evaluations_are_reported(tmp_path):
    log, tail = log_and_tail(tmp_path)
    log.write(StepEvent(step=4, loss=3.0))
    log.write(EvalEvent(step=4, eval_loss=3.5, seconds=1.0))
    assert tail.read() == [Report(metrics(step=4, loss=3.0, eval_loss=3.5))]


def test_of_several_checkpoints_between_two_calls_the_last_is_reported(tmp_path):
    log, tail = log_and_tail(tmp_path)
    for step in (1, 2, 3):
        log.write(StepEvent(step=step, loss=4.0 - step))
        log.write(CheckpointEvent(step=step, state="started", path=f"c{step}"))
        log.write(CheckpointEvent(step=step, state="committed", path=f"c{step}"))
    assert tail.read() == [Report(metrics(step=3, loss=1.0), "c3")]
