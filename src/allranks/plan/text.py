"""A plan for people."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields

from allranks.listing import gigabytes, si_bytes
from allranks.plan.config_lines import as_yaml, inline
from allranks.plan.cost import RunCost, checkpoint_bytes
from allranks.plan.error_bounds import MEMORY_ERROR, TIME_ERROR
from allranks.plan.report import Plan
from allranks.plan.table import Row, best_of_each
from allranks.plan.workload import RankMemory

_METHODS = {"full": "full", "lora": "LoRA", "qlora": "Q-LoRA"}


def in_full(plan: Plan, *, shows_all: bool = False, width: int | None = None) -> str:
    """The table, then what the best and the config's own take, then what is assumed. `width`: of the terminal."""
    shown = plan.rows if shows_all else best_of_each(plan.rows)
    parts = [_head(plan), _table(shown, hidden=len(plan.rows), width=width)]
    parts.append(_lines(plan))
    parts.append(_memory(plan))
    if plan.traced:
        parts.append(_traced(plan))
    if plan.remedies:
        parts.append(_remedies(plan))
    if len(plan.scaling) > 1:
        parts.append(_scaling(plan))
    parts.append(_whole(plan))
    parts.append("\n".join(["assumed:", *(f"  - {sentence}" for sentence in plan.assumptions)]))
    return "\n\n".join(parts)


def _head(plan: Plan) -> str:
    machines = plan.machines
    between = f", {machines.link.title} between the nodes" if machines.num_nodes > 1 else ""
    of = "node" if machines.num_nodes == 1 else "nodes"
    return "\n".join(
        [
            f"{'model:':<12}{plan.model}",
            f"{'nodes:':<12}{machines.num_nodes} {of} x {machines.ranks_per_node} {machines.device.title}{between}",
            f"{'data:':<12}{_data(plan)}",
            f"{'batch:':<12}{plan.own.batch.told()}",
        ]
    )


def _data(plan: Plan) -> str:
    lengths = plan.lengths
    if lengths.num_blocks is None:
        return f"not prepared yet: every block is taken to be full, {lengths.longest:,} tokens"
    return (
        f"prepared: {lengths.num_blocks:,} blocks of {lengths.mean:,.0f} tokens in the mean, {lengths.longest:,} in "
        f"the longest, {lengths.labelled:.0%} of them with a label"
    )


_COLUMNS = ("", "strategy", "method", "micro x acc.", "memory", "step", "tokens/s", "MFU", "limited by")
_SHORT = {" with reshard_after_forward: false": ", no reshard", " (dp_shard_size: node)": ""}


def _table(shown: Sequence[Row], *, hidden: int, width: int | None) -> str:
    """On a terminal that is too narrow for it, what is last in a row stands below it."""
    table = [_COLUMNS, *(_cells(one) for one in shown)]
    lines = _aligned(table)
    if width is not None and max(map(len, lines)) > width:
        lines = _aligned([row[:_ALWAYS] for row in table])
        below = [f"      {_said(row[_ALWAYS:])}" for row in table[1:]]
        lines = [lines[0], *(line for pair in zip(lines[1:], below, strict=True) for line in pair)]
    more = f"; {hidden - len(shown):,} more with --all" if hidden > len(shown) else ""
    return "\n".join([*lines, f"* this config. ~ nearer to the limit than the prediction is exact{more}"])


def _said(cells: Sequence[str]) -> str:
    rate, mfu, limit = cells
    return ", ".join([f"{rate} tokens/s", *([f"MFU {mfu}"] if mfu else []), limit])


_ALWAYS = 6
"""Columns that fit on any terminal."""


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    to_the_left = (0, 1, 2, len(_COLUMNS) - 1)
    return [
        "  ".join(
            cell.ljust(width) if column in to_the_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _cells(one: Row) -> tuple[str, ...]:
    workload = one.workload
    name = workload.name
    for long, short in _SHORT.items():
        name = name.replace(long, short)
    name += ", offloads" if workload.offloads_activations else ", recomputes" * workload.recomputes
    size = one.memory.total
    return (
        "*" if one.is_own else "",
        name,
        _METHODS[workload.method],
        f"{one.batch.micro_batch_size} x {one.batch.accumulation}",
        f"{'' if one.is_certain else '~'}{gigabytes(size, 0 if size >= 9.95e9 else 1)}",
        duration(one.time.total),
        f"{one.tokens_per_second:,.0f}",
        "" if one.mfu is None else f"{one.mfu:.0%}",
        one.limit,
    )


def _lines(plan: Plan) -> str:
    best = plan.best
    if best.is_own:
        return "the best: this config as it is" if best.fits else "nothing of this fits"
    if not best.fits:
        return "nothing of this fits"
    text = as_yaml(plan.lines).rstrip()
    removed = f", in place of what it says of {', '.join(plan.replaced)}" if plan.replaced else ""
    told = f"the best, as lines of the config{removed}:\n\n" + "\n".join(f"  {line}" for line in text.splitlines())
    return told + (
        f"\n\n  and in DeepSpeed's settings {_as_auto(best.deepspeed_changes)}" if best.deepspeed_changes else ""
    )


def _as_auto(keys: Collection[str]) -> str:
    return f"`auto` for {', '.join(keys)}, where they have numbers"


def _memory(plan: Plan) -> str:
    shown = [("the best", plan.best.memory)]
    if not plan.best.is_own:
        shown.append(("this config", plan.own.memory))
    names = [part.name for part in fields(RankMemory) if part.name not in ("host", "adapter")]
    lines = [f"memory of a rank, in GB of {plan.machines.device.memory_bytes / 1e9:.1f} (give or take {_ERROR})"]
    for title, memory in shown:
        parts = ", ".join(f"{name} {_in_gb(getattr(memory, name))}" for name in names if getattr(memory, name))
        lines.append(f"  {title}: {_in_gb(memory.total)} = {parts}")
        if memory.host:
            lines.append(f"    and {si_bytes(memory.host)} of each node's own memory")
    return "\n".join(lines)


def _in_gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f}" if num_bytes >= 0.95e9 else f"{num_bytes / 1e9:.2g}"


def _traced(plan: Plan) -> str:
    lines = ["memory traced: the engine itself on tensors without values, so with all that this model's code keeps"]
    for one in plan.traced:
        title = "the best" if one.row is plan.best else "this config"
        if one.memory is None:
            lines.append(f"  {title}: {one.why_not}")
            continue
        closed, traced = one.row.memory, one.memory
        difference = closed.total / traced.total - 1
        names = [part.name for part in fields(RankMemory) if part.name not in ("host", "adapter")]
        parts = ", ".join(
            f"{name} {getattr(traced, name) / 1e9:.1f} ({getattr(closed, name) / 1e9:.1f})"
            for name in names
            if getattr(traced, name) or getattr(closed, name)
        )
        lines.append(f"  {title}: {gigabytes(traced.total)}; as above {closed.total / 1e9:.1f}, {difference:+.1%}")
        lines.append(f"    by part (as above): {parts}")
    return "\n".join(lines)


_ERROR = f"{MEMORY_ERROR:.0%}"


def _remedies(plan: Plan) -> str:
    whole = plan.machines.device.memory_bytes
    lines = [f"this config does not fit: {plan.own.memory.total / 1e9:.1f} of {gigabytes(whole)}. What would be"]
    for one in plan.remedies:
        of_deepspeed = f"in DeepSpeed's settings {_as_auto(one.deepspeed)}" if one.deepspeed else ""
        text = " and ".join(filter(None, [one.others, inline(one.keys), of_deepspeed]))
        fits = "fits" if one.is_enough else "too much"
        lines.append(f"  {gigabytes(one.memory.total):>10}, {fits}: {text}")
    if not any(one.is_enough for one in plan.remedies):
        lines.append("  nothing tried fits: a smaller model, a shorter sequence_len, or GPUs with more memory")
    return "\n".join(lines)


def _scaling(plan: Plan) -> str:
    best = plan.best.workload
    lines = [
        f"with more nodes ({best.name}, {_METHODS[best.method]}, give or take {TIME_ERROR:.0%} of the times): the same "
        "batch, or one that grows with them",
        "  nodes  GPUs   batch      step  tokens/s  speed-up  efficiency  grown batch  efficiency",
    ]
    lines += _scaling_rows(plan)
    return "\n".join(lines)


def _scaling_rows(plan: Plan) -> Iterator[str]:
    for one in plan.scaling:
        same, grown = one.same, one.grown
        head = f"  {one.num_nodes:>5}  {same.workload.num_ranks:>4}  {same.batch.effective:>6}"
        if one.speedup is None or one.efficiency is None or one.grown_efficiency is None:
            yield f"{head}  does not fit ({same.limit})"
            continue
        yield (
            f"{head}  {duration(same.time.total):>8}  {same.tokens_per_second:>8,.0f}  {one.speedup:>7.2f}x  "
            f"{one.efficiency:>10.0%}  {grown.batch.effective:>11}  {one.grown_efficiency:>10.0%}"
        )


def _whole(plan: Plan) -> str:
    shown = [("the best", plan.best, plan.cost)]
    if not plan.best.is_own and plan.own.fits:
        shown.append(("this config", plan.own, plan.own_cost))
    return "\n".join(["the whole run", *(f"  {title}: {_run(one, run)}" for title, one, run in shown)])


def _run(one: Row, run: RunCost | None) -> str:
    num_bytes = checkpoint_bytes(one.workload)
    if run is None:
        return (
            f"a checkpoint is {si_bytes(num_bytes)}; how many steps there are is known once the data is prepared "
            "(`allranks preprocess`), or by --max-steps"
        )
    cost = "" if run.cost is None else f", costs {run.cost:,.2f}"
    hours = f"{run.gpu_hours:,.1f}" if run.gpu_hours >= 1 else f"{run.gpu_hours:.2g}"
    of_gpus = "" if one.workload.on_cpu else f" ({hours} GPU-hours)"
    return (
        f"{run.num_steps:,} steps in {duration(3600 * run.hours)}{of_gpus}{cost}; a checkpoint "
        f"is {si_bytes(num_bytes)}, {duration(run.checkpoint_seconds)} at 1 GB/s a node"
    )


def duration(seconds: float) -> str:
    """In the unit that is read best."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"
