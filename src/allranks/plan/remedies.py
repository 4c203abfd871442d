"""What would make a run fit that does not: which keys to change, and how much memory that leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from allranks.plan.config_lines import deepspeed_changes
from allranks.plan.hardware import Device
from allranks.plan.memory import rank_memory
from allranks.plan.over_nodes import on_nodes
from allranks.plan.workload import Method, RankMemory, Workload

_MOST_NODES = 1024


@dataclass(frozen=True)
class Remedy:
    """`keys` of the config to change and, where it keeps them, of its DeepSpeed settings; `others` in words; what a
    rank then holds, and whether that fits."""

    keys: Mapping[str, Any]
    deepspeed: Mapping[str, Any]
    others: str
    workload: Workload
    memory: RankMemory
    is_enough: bool


def remedies(own: Workload, others: Sequence[Workload], device: Device, longest: int, num_nodes: int) -> list[Remedy]:
    """What helps, each on top of those before it: keys that leave the result as it is, then the strategy that holds
    least, then adapters by themselves, then more nodes. Ends with the first that fits, but tells of adapters always."""
    now, keys = replace(own, tokens=longest), dict[str, Any]()
    holds = rank_memory(now, device).total
    found: list[Remedy] = []
    for more, change in _same_result(now):
        changed = change(now)
        memory = rank_memory(changed, device)
        if memory.total < holds and not (found and found[-1].is_enough):
            now, keys, holds = changed, {**keys, **more}, memory.total
            found.append(_remedy(keys, "", now, device))
    for method in _order(own.method):
        group = {one.name: _as(one, now) for one in others if one.method == method}
        if not group or (method == own.method and found and found[-1].is_enough):
            continue
        least = min(group.values(), key=lambda one: rank_memory(one, device).total)
        if method != own.method or rank_memory(least, device).total < holds:
            kept = {key: value for key, value in keys.items() if least.layout.kind == "fsdp" or "fsdp" not in key}
            found.append(_remedy(kept, _NAMES[method] + least.name, least, device))
    if not any(one.is_enough and one.workload.method == own.method for one in found):
        same = [one.workload for one in found if one.workload.method == own.method]
        found += _more_nodes(same[-1] if same else now, keys, device, num_nodes)
    return found


_Change = Callable[[Workload], Workload]


def _same_result(here: Workload) -> Iterator[tuple[dict[str, Any], _Change]]:
    """Keys that change what a rank holds and not what it computes, the cheapest first."""
    if here.evaluation_batch_size > here.micro_batch_size:
        yield {"eval_batch_size": here.micro_batch_size}, lambda one: replace(one, evaluation_batch_size=0)
    if not here.chunks_logits:
        yield {"chunked_cross_entropy": True}, lambda one: replace(one, chunks_logits=True)
    if not here.recomputes:
        yield {"gradient_checkpointing": True}, lambda one: replace(one, recomputes=True)
    if here.layout.kind == "fsdp" and not here.layout.reduces_each and here.num_micro_batches > 1:
        yield (
            {"fsdp_config.sync_each_batch": True},
            lambda one: replace(one, layout=replace(one.layout, reduces_each=True)),
        )
    if here.micro_batch_size > 1:
        steps = here.num_micro_batches * here.micro_batch_size
        yield (
            {"micro_batch_size": 1, **({} if here.has_batch_size else {"gradient_accumulation_steps": steps})},
            lambda one: replace(one, micro_batch_size=1, num_micro_batches=steps),
        )
    if here.layout.kind == "fsdp" and here.layout.keeps_gathered:
        yield (
            {"fsdp_config.reshard_after_forward": True},
            lambda one: replace(one, layout=replace(one.layout, keeps_gathered=False)),
        )
    if not here.offloads_activations:
        yield (
            {"gradient_checkpointing": "offload"},
            lambda one: replace(one, recomputes=True, offloads_activations=True),
        )


_NAMES: Mapping[Method, str] = {"full": "", "lora": "LoRA, ", "qlora": "Q-LoRA, "}


def _order(method: Method) -> list[Method]:
    """The method itself, then those that hold less."""
    methods: list[Method] = ["full", "lora", "qlora"]
    return methods[methods.index(method) :]


def _more_nodes(one: Workload, keys: Mapping[str, Any], device: Device, num_nodes: int) -> list[Remedy]:
    """The fewest nodes, by powers of two, on which it fits."""
    number = 2 * num_nodes
    while number <= _MOST_NODES:
        remedy = _remedy(keys, f"{one.name} on {number} nodes", on_nodes(one, number), device)
        if remedy.is_enough:
            return [remedy]
        number *= 2
    return []


def _as(one: Workload, like: Workload) -> Workload:
    """`one`, with the rows, the recomputation and the way of reducing of another."""
    layout = one.layout if one.layout.kind != "fsdp" else replace(one.layout, reduces_each=like.layout.reduces_each)
    return replace(
        one,
        layout=layout,
        micro_batch_size=like.micro_batch_size,
        num_micro_batches=like.num_micro_batches,
        tokens=like.tokens,
        recomputes=like.recomputes,
        offloads_activations=like.offloads_activations,
        chunks_logits=like.chunks_logits,
    )


def _remedy(keys: Mapping[str, Any], others: str, workload: Workload, device: Device) -> Remedy:
    memory = rank_memory(workload, device)
    is_enough = memory.total <= device.memory_bytes
    return Remedy(dict(keys), deepspeed_changes(workload, keys), others, workload, memory, is_enough)
