"""What communication takes of a step over what was measured, for the config's strategy and for others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from allranks.cluster.measure.values import Measurements
from allranks.listing import few, si_bytes
from allranks.plan.step import PlannedStep, communication_share
from allranks.preflight.check import Answer, Check, Subject, found, skipped
from allranks.preflight.usual import not_measured, scaled, told_rate, told_time

_MOST_OTHERS = 5


def _step(subject: Subject) -> list[Answer]:
    if (nothing := not_measured(subject)) is not None:
        return nothing
    measured = subject.measured
    assert measured is not None
    if (found_rate := _carried(measured)) is None:
        return [skipped(subject.nodes, "no link was measured")]
    steps = [one for one in subject.wanted.steps if one.node_sends_bytes]
    if not steps and not measured.crossing_bytes:
        why = "its model's files are not on this disk, and no run here has counted it"
        return [skipped(subject.nodes, f"what a step of this config sends is not known: {why}")]
    rate, over = found_rate
    told = [*_counted(measured, rate, over)]
    if steps:
        told.append(_shares(subject, steps, rate, over))
    return [found(subject.nodes, "; ".join(told))]


def _carried(measured: Measurements) -> tuple[float, str] | None:
    """Bytes per second that a node sends in an all-reduce of the ranks, which is what training does; else those of the
    slowest link. With what that was."""
    made = [one.all_reduces[-1] for of in measured.devices.values() for one in of if one.all_reduces]
    if made and measured.world_size > 1:
        slowest = max(made, key=lambda one: one.seconds)
        rate = slowest.bus_bytes_per_second(measured.world_size)
        return rate, f"at the {told_rate(rate)} of the all-reduce of {si_bytes(slowest.num_bytes, 0, 'B')}"
    rates = [one.bytes_per_second for one in measured.links if one.bytes_per_second]
    return (min(rates), f"over the slowest link ({told_rate(min(rates))} by TCP)") if rates else None


def measured_link(measured: Measurements | None) -> dict[str, float]:
    """What a node sends to others, as plans of later runs take it; empty where no link was measured."""
    if measured is None or (rate := _carried(measured)) is None:
        return {}
    latencies = [one.latency_seconds for one in measured.links if one.latency_seconds]
    return {"bytes_per_second": rate[0], "latency_seconds": statistics.median(latencies) if latencies else 0.0}


def _counted(measured: Measurements, rate: float, over: str) -> Sequence[str]:
    """What the run before has counted."""
    if not measured.crossing_bytes:
        return ()
    sent = si_bytes(measured.crossing_bytes, 1, "B")
    seconds = told_time(measured.crossing_bytes / rate)
    text = f"the run before counted {sent} that a node sends to others in a step: {seconds} {over}"
    if measured.step_seconds:
        text += f", and its steps took {told_time(measured.step_seconds)} in the median"
    return [text]


def _shares(subject: Subject, steps: Sequence[PlannedStep], rate: float, over: str) -> str:
    """Each strategy's share; computing takes at least what its operations take at the slowest device's matmul."""
    assert subject.measured is not None
    flops = [one.matmul_flops for of in subject.measured.devices.values() for one in of if one.matmul_flops]
    memory = _memory_of_a_rank(subject)
    too_large = [one for one in steps if memory is not None and one.state_bytes > memory and not one.is_own]
    shown = [one for one in steps if one not in too_large]
    slowest = min(flops, default=0.0)
    told = few(
        [_told(one, rate, slowest, is_first=not n) for n, one in enumerate(shown)], _MOST_OTHERS + 1, between="; "
    )
    text = f"by the model's shapes, {over}: {told}"
    if slowest:
        text += (
            ". At most, for computing is taken to be as quick as a matmul here "
            f"({scaled(slowest, 'FLOP/s')}); in brackets where it hides as much of communication as it can"
        )
    if too_large and memory is not None:
        needs = few([f"{one.name} ({si_bytes(one.state_bytes, 0, 'B')})" for one in too_large], _MOST_OTHERS)
        text += f". Too large for a rank's {si_bytes(memory, 0, 'B')}: {needs}"
    return text


def _told(step: PlannedStep, rate: float, matmul_flops: float, *, is_first: bool) -> str:
    name = f"{step.name} (this config)" if step.is_own else step.name
    seconds = step.node_sends_bytes / rate
    sent = f"{si_bytes(step.node_sends_bytes, 1, 'B')} from each node in {told_time(seconds)}"
    if not matmul_flops or step.flops is None:
        return f"{name} sends {sent}"
    share, hidden = communication_share(seconds, step.flops / matmul_flops)
    if is_first:
        return f"{name} will spend {share:.0%} [{hidden:.0%}] of each step in communication ({sent})"
    return f"{name} {share:.0%} [{hidden:.0%}] ({sent})"


def _memory_of_a_rank(subject: Subject) -> float | None:
    """Of the smallest GPU; on CPUs a node's, over its ranks. None where a node does not tell."""
    found: list[float] = []
    for node, report in subject.reported:
        if subject.wanted.device == "cuda":
            sizes = [gpu.memory for gpu in report.gpus or ()]
            known = min((size for size in sizes if size), default=None)
        else:
            ranks = subject.num_processes.get(node) or subject.wanted.nproc_per_node
            limits = [size for size in (report.memory.total, report.memory.cgroup_limit) if size]
            known = min(limits) // ranks if limits and ranks else None
        if known is None:
            return None
        found.append(known)
    return min(found, default=None)


CHECKS = (
    Check(
        "measured.step",
        "What part of a step communication will take over these links, for this config's strategy and for others that "
        "it could run with",
        "A strategy that sends much is slow over a slow network, however fast the GPUs are.",
        "If that is much of a step: a strategy that sends less, or a larger gradient_accumulation_steps "
        "(docs/communication.md)",
        "note",
        "A note. The bytes follow from the shapes of the model's tensors; those of an earlier run in this output_dir "
        "were counted. Computing is taken to be as quick as the measured matmul, with full blocks: a real step takes "
        "longer, and its share of communication is smaller. What a strategy holds at least of weights, gradients and "
        "optimizer is held against a rank's memory. Without the model's files and without such a run it is skipped.",
        _step,
        quick=False,
    ),
)
