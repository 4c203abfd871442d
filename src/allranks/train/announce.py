"""What rank 0 tells the terminal of a training before its first step."""

from __future__ import annotations

from allranks.train.loop import Loop


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
