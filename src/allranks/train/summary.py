"""The last lines of a run: how it ended, what it took, how the loss went, where everything lies, what to do next."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from allranks.checkpoint import commit
from allranks.observe import RunDir, read_events
from allranks.observe.events import EvalEvent, StepEvent
from allranks.observe.picture import loss_picture
from allranks.observe.progress import clock, short_count
from allranks.train.loop import Loop, TrainingEnd

# A step's loss depends on what is in its batch: the mean of some says more of the training.
_MEAN_OF = 10
_PICTURE_STEPS = 5  # fewer are no curve
_PICTURE_LINES = 10
_PICTURE_WIDTH = 110
# About a million steps; of a longer run the last ones are shown.
_MOST_BYTES = 300_000_000


def summary(
    loop: Loop, outcome: TrainingEnd, run_dir: RunDir, written: Path | None, *, first_step: int, seconds: float
) -> list[str]:
    """The lines. `written`: the result for Hugging Face tools; `first_step`: the first of this start, which has taken
    `seconds` from its beginning."""
    steps: dict[int, StepEvent] = {}
    evaluations: dict[int, float] = {}
    for event in read_events(run_dir.events(0), last_bytes=_MOST_BYTES):
        # Of a step that was done twice, after a resume from an earlier one, the later counts.
        if isinstance(event, StepEvent) and event.step <= loop.step:
            steps[event.step] = event
        elif isinstance(event, EvalEvent) and event.step <= loop.step:
            evaluations[event.step] = event.eval_loss
    losses = {step: steps[step].loss for step in sorted(steps)}
    ends = {
        "done": f"done: {loop.step} steps, loss {loop.last_loss:.4f}",
        "early": f"stopped at step {loop.step}: {loop.evals_without_improvement} evaluations without improvement",
        "preempted": f"preempted ({outcome.signal}) at step {loop.step}: saved; start the same command again with "
        "--auto-resume-from-checkpoints true",
    }
    lines = [ends[outcome.reason]]
    own = [step for number, step in steps.items() if number >= first_step]
    lines += _work(own, seconds, loop)
    lines += _loss_means(losses)
    lines += _evaluations(evaluations)
    if loop.traffic is not None and loop.traffic.told:
        lines.append(f"  between nodes: {loop.traffic.told}")
    if own:
        lines += _picture(losses)
    return lines + _places(loop, outcome, run_dir, written)


def _work(own: list[StepEvent], seconds: float, loop: Loop) -> list[str]:
    tokens, in_steps = sum(step.tokens for step in own), sum(step.seconds for step in own)
    if not own or in_steps <= 0:
        return []
    rate = tokens / in_steps
    mfu = f", MFU {rate / loop.full_speed:.0%}" if loop.full_speed else ""
    count = f"{len(own):,} step{'s' if len(own) > 1 else ''}"
    return [
        f"  {'time':<12}{clock(seconds)} from start to end, {clock(in_steps)} of it in {count}",
        f"  {'tokens':<12}{tokens:,}, {short_count(rate)} tokens/s in the mean of these steps{mfu}",
    ]


def _loss_means(losses: Mapping[int, float]) -> list[str]:
    known = [step for step, loss in losses.items() if math.isfinite(loss)]
    length = min(_MEAN_OF, len(known) // 2)
    if not length:
        return []

    def mean(of: list[int]) -> str:
        value = sum(losses[step] for step in of) / len(of)
        steps = f"steps {of[0]} to {of[-1]}" if len(of) > 1 else f"step {of[0]}"
        return f"{value:.4f} ({'mean of ' * (len(of) > 1)}{steps})"

    return [f"  {'loss':<12}{mean(known[:length])} -> {mean(known[-length:])}"]


def _evaluations(found: Mapping[int, float]) -> list[str]:
    if not found:
        return []
    steps = sorted(found)
    best = min((step for step in steps if math.isfinite(found[step])), key=found.__getitem__, default=None)
    shown = list(dict.fromkeys((steps[0], *([best] if best is not None else []), steps[-1])))
    told = [
        f"{found[step]:.4f} at step {step}" + (" (best)" if step == best and len(steps) > 1 else "")
        for step in sorted(shown)
    ]
    of_all = f"; {len(steps)} in all" if len(steps) > len(shown) else ""
    return [f"  {'eval_loss':<12}{' -> '.join(told)}{of_all}"]


def _picture(losses: Mapping[int, float]) -> list[str]:
    if len(losses) < _PICTURE_STEPS:
        return []
    width = min(_PICTURE_WIDTH, shutil.get_terminal_size().columns) - 2
    # Where rank 0's own terminal says nothing else, a log is read as UTF-8.
    ascii_only = not (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    picture = loss_picture(dict(losses), width=width, height=_PICTURE_LINES, ascii_only=ascii_only)
    return ["", *picture.splitlines(), ""] if picture else []


def _places(loop: Loop, outcome: TrainingEnd, run_dir: RunDir, written: Path | None) -> list[str]:
    # One of a later step is not of this run: it was passed over as damaged.
    found = commit.complete_checkpoints(run_dir.checkpoints)
    newest = [path for path in found if commit.step_of(path) <= loop.step]
    lines = [f"  checkpoint  {newest[0]}"] if newest else []
    lines.append(f"  run         {run_dir.path}  (events/, logs/, checkpoints/)")
    if written is not None:
        lines.append(f"  {written.name:<11} {written}")
    elif newest and outcome.reason != "preempted":
        best = f" --step {commit.step_of(Path(loop.best_checkpoint))}" if loop.best_checkpoint else ""
        lines.append(f"  export      allranks export {run_dir.path}{best}")
    if newest and outcome.reason != "preempted":
        lines.append(f"  try it      allranks chat {run_dir.path} --compare base")
    return lines
