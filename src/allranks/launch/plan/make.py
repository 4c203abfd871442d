"""A whole plan: from a config, the nodes and the prepared data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path

from allranks.config import RunConfig
from allranks.config.batch import global_batch
from allranks.config.stored_quantization import as_stored
from allranks.errors import UsageError
from allranks.launch.plan.machines import Asked, machines_of
from allranks.launch.plan.source import Source, lengths_of, schedule, source_of
from allranks.listing import si_bytes
from allranks.model.positions import position_warning
from allranks.model.stored_kind import stored_kind_warning
from allranks.plan.config_lines import changed, lines, replaced
from allranks.plan.cost import RunCost, run_cost
from allranks.plan.counted import num_parameters
from allranks.plan.described import UnknownShapeError
from allranks.plan.error_bounds import MEMORY_ERROR, TIME_ERROR
from allranks.plan.lengths import Lengths
from allranks.plan.over_nodes import over_nodes
from allranks.plan.remedies import remedies
from allranks.plan.report import Plan, Traced
from allranks.plan.table import Machines, Row, rows
from allranks.plan.workload import ModelShape, Workload
from allranks.plan.workloads import workloads
from allranks.trace import traced

_STEADY = 0.1
"""What a calibrated plan's times are asked to be right within."""
_TOLD_WAIT = 0.05
"""From which part of a step on that others wait for the rank with the longest rows, it is told."""


def make_plan(config: Path, overrides: Mapping[str, str], asked: Asked, *, ignore_unsupported: bool = False) -> Plan:
    """Raises ConfigError or UsageError for a config, a model or a device that cannot be planned."""
    price = asked.price_per_gpu_hour
    if price is not None and not math.isfinite(price):
        raise UsageError(f"--price-per-gpu-hour: expected a number, got {price}")
    flags = None
    if asked.batch is not None:
        for key in overrides:
            if key.replace("-", "_") in ("gradient_accumulation_steps", "batch_size"):
                raise UsageError(f"--{key.replace('_', '-')}: --batch says the effective batch; leave one of them out")
        flags = dict.fromkeys(("gradient_accumulation_steps", "batch_size"), "--batch")
        overrides = {**overrides, "gradient_accumulation_steps": "null", "batch_size": str(asked.batch)}
    source = source_of(config, overrides, flags=flags, ignore_unsupported=ignore_unsupported)
    told = _told_of_model(source)
    machines, on_cpu = machines_of(asked, Path(source.cfg.checkpoint.output_dir).expanduser())
    lengths = lengths_of(source)
    try:
        candidates = workloads(
            source.cfg,
            source.config_json,
            num_nodes=machines.num_nodes,
            gpus_per_node=machines.ranks_per_node,
            on_cpu=on_cpu,
            stored=source.stored_shapes(),
            labelled=lengths.labelled,
        )
    except UnknownShapeError as error:
        raise error.found_in(source.place_of(error.key)) from None
    found = rows(candidates, machines, _wanted(source, machines), lengths)
    best, own = found[0], next(one for one in found if one.is_own)
    changes = best.workload.changes
    return Plan(
        model=_model(source, own.workload.shape),
        machines=machines,
        lengths=lengths,
        rows=found,
        own=own,
        lines=lines(changes) if source.usual is None else changed(source.usual, changes, best.deepspeed_changes),
        replaced=replaced(changes, source.given),
        cost=_cost(best, source, lengths, asked),
        own_cost=_cost(own, source, lengths, asked),
        scaling=over_nodes(best, machines, lengths),
        remedies=()
        if own.fits
        else remedies(own.workload, candidates, machines.device, lengths.longest, machines.num_nodes),
        assumptions=[
            *_assumptions(machines, lengths, own.workload, packs=source.cfg.data.sample_packing),
            *_of_config(source.cfg),
        ],
        traced=_traced(source, best, own, lengths) if asked.traces else (),
        remarks=[*source.cfg.remarks, *told],
    )


def _told_of_model(source: Source) -> list[str]:
    """What a run would be told of the model that it trains. Raises ConfigError for what it would be refused for."""
    told = (position_warning(source.config_json, source.cfg), stored_kind_warning(source.config_json, source.cfg))
    return [f"warning: {one}" for one in told if one]


def _traced(source: Source, best: Row, own: Row, lengths: Lengths) -> list[Traced]:
    from concurrent.futures import ThreadPoolExecutor  # only here: a plan answers at once

    from allranks.cluster.descendants import ends_what_it_starts

    shown = [best] if best is own else [best, own]
    cfg = as_stored(source.cfg, source.config_json)
    trace = partial(traced, cfg=cfg, config_json=source.config_json, tokens=lengths.longest)
    # Each waits for a process, which is ended before it is waited for.
    with ThreadPoolExecutor() as beside, ends_what_it_starts():
        return list(beside.map(trace, shown))


def _wanted(source: Source, machines: Machines) -> int:
    """The effective batch that the config asks for on these nodes."""
    return global_batch(source.cfg.optimizer, machines.num_ranks)


def _model(source: Source, shape: ModelShape) -> str:
    """What is known of it, in words."""
    elements = num_parameters(shape)
    experts = f", {shape.experts_per_token} of {shape.num_experts} experts for a token" if shape.num_experts else ""
    size = f"{elements / 1e9:.2f} billion" if elements >= 1e8 else f"{elements / 1e6:.2f} million"
    return f"{source.cfg.model.base_model}: {size} parameters, {shape.num_layers} layers{experts}"


def _cost(one: Row, source: Source, lengths: Lengths, asked: Asked) -> RunCost | None:
    steps = schedule(source.cfg, one.batch.effective, lengths)
    if steps is None:
        return None
    return run_cost(
        one.workload,
        one.time,
        num_steps=steps.num_steps,
        num_checkpoints=len(steps.save_at),
        saves_beside=source.cfg.checkpoint.save_async is not False,
        price_per_gpu_hour=asked.price_per_gpu_hour,
    )


def _of_device(machines: Machines, own: Workload) -> Iterator[str]:
    """Where the rates are from that times are predicted with."""
    device, known = machines.device, machines.calibration
    if known is not None and known.is_measured:
        when = datetime.fromtimestamp(known.when).strftime("%Y-%m-%d")
        best = max(rate for _, rate in known.products)
        yield (
            f"{device.title}: measured on this machine on {when}: {best / 1e9:,.0f} GFLOP/s in large products, "
            f"{si_bytes(known.small[-1][1])}/s in large tensors"
        )
        if known.spread > _STEADY:
            yield (
                f"its speed changed by {known.spread:.0%} while it was measured, as it does where a machine is shared: "
                "times may be off by as much more"
            )
        if not known.is_of(machines.ranks_per_node, own.num_threads):
            yield (
                f"it was measured with {_ranks(known.num_ranks, known.num_threads)}, and not with "
                f"{_ranks(machines.ranks_per_node, own.num_threads)} as here: rates are taken to be in proportion to "
                "cores, and times may be further off than is said above; --calibrate measures them so"
            )
    elif device.source:
        yield (
            f"{device.title}: {si_bytes(device.memory_bytes)} of memory, {device.bf16 / 1e12:,.0f} TFLOP/s in "
            f"bfloat16, {si_bytes(device.bandwidth, 2)}/s; from {device.source}"
        )
    else:
        yield f"{device.title}: rates are guesses; `allranks plan CONFIG --calibrate` measures them"
    if known is not None and known.runs:
        yield f"times are corrected by what {len(known.runs)} runs took on this machine"


def _of_config(cfg: RunConfig) -> Iterator[str]:
    """What it says that is not counted."""
    if cfg.optimizer.unfrozen_parameters:
        yield "unfrozen_parameters: all is counted as if the whole model were trained; such a run holds and takes less"


def _ranks(number: int, num_threads: int) -> str:
    of = "rank" if number == 1 else "ranks"
    return f"{number} {of} of {num_threads} {'thread' if num_threads == 1 else 'threads'} a node"


def _assumptions(machines: Machines, lengths: Lengths, own: Workload, *, packs: bool) -> list[str]:
    link = machines.link
    found = [
        f"memory may be wrong by {MEMORY_ERROR:.0%} and times by {TIME_ERROR:.0%}: few of the published runs that they "
        "were compared with are further off",
        *_of_device(machines, own),
    ]
    if machines.num_nodes > 1:
        found.append(
            f"{link.title}: each node sends {link.bytes_per_second * 8 / 1e9:,.0f} Gbit/s, of which collectives reach "
            f"{link.achieved:.0%}"
        )
    if lengths.num_blocks is None:
        found.append("every block is one document, full, and every token has a label: real data takes less of all")
    elif (longer := lengths.slowest_of(own).tokens / lengths.usual - 1) > _TOLD_WAIT:
        found.append(
            f"in a step the rank with the longest rows has {longer:.0%} more tokens than the mean, and all others wait "
            f"for it{'' if packs else ': sample_packing: true makes rows alike'}"
        )
    found.append("all nodes are alike, nothing else runs on them, and the data comes faster than it is computed")
    return found
