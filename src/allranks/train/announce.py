"""What rank 0 tells the terminal of a training: before its first step, and at its end."""

from __future__ import annotations

from pathlib import Path

from allranks.checkpoint import commit
from allranks.observe import RunDir
from allranks.train.loop import Loop, TrainingEnd


def announcement(loop: Loop, world_size: int) -> list[str]:
    """What is about to be trained, spread how, in how many steps."""
    model, placement = loop.model, loop.model.placement
    kind = f"ZeRO-{placement.zero_stage}" if placement.kind == "zero" else placement.kind
    share = model.num_trainable / model.num_parameters
    packed = f", {model.packed.report(model.num_parameters)}" if model.packed else ""
    return [
        f"{model.num_parameters / 1e6:,.1f} M parameters{packed}, {model.num_trainable / 1e6:,.2f} M trainable "
        f"({share:.1%}); {kind} on {world_size} rank{'s' if world_size > 1 else ''} "
        f"({placement.device.type}); {len(loop.plan.blocks):,} blocks, {loop.plan.global_batch} a step, "
        f"{loop.step_schedule.num_steps} steps",
        f"  {model.ways()}",
    ]


def summary(loop: Loop, outcome: TrainingEnd, run_dir: RunDir, written: Path | None) -> list[str]:
    """How it ended, where everything lies, and what to do next. `written`: the result for Hugging Face tools."""
    # One of a later step is not of this run: it was passed over as damaged.
    found = commit.complete_checkpoints(run_dir.checkpoints)
    newest = [path for path in found if commit.step_of(path) <= loop.step]
    ends = {
        "done": f"done: {loop.step} steps, loss {loop.last_loss:.4f}",
        "early": f"stopped at step {loop.step}: {loop.evals_without_improvement} evaluations without improvement",
        "preempted": f"preempted ({outcome.signal}) at step {loop.step}: saved; start the same command again with "
        "--auto-resume-from-checkpoints true",
    }
    lines = [ends[outcome.reason]]
    if loop.traffic is not None and loop.traffic.told:
        lines.append(f"  between nodes: {loop.traffic.told}")
    if newest:
        lines.append(f"  checkpoint  {newest[0]}")
    lines.append(f"  run         {run_dir.path}  (events/, logs/, checkpoints/)")
    if written is not None:
        lines.append(f"  {written.name:<11} {written}")
    elif newest and outcome.reason != "preempted":
        best = f" --step {commit.step_of(Path(loop.best_checkpoint))}" if loop.best_checkpoint else ""
        lines.append(f"  export      allranks export {run_dir.path}{best}")
    return lines
