"""What a step of this config will take, under its own strategy and under the others that this config could run with."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from allranks.config import RunConfig
from allranks.config.batch import global_batch, num_micro_batches
from allranks.config.load import resolve_mapping
from allranks.config.strategy import strategy
from allranks.errors import ConfigError
from allranks.plan.counted import alike_of, elements_of_layers
from allranks.plan.families import FAMILIES, Family
from allranks.plan.flops import training_flops_per_token
from allranks.plan.optimizer_state import state_bytes
from allranks.plan.step import PlannedStep
from allranks.plan.step_traffic import Layout, StepSizes, node_sends_bytes
from allranks.plan.workload import PERSISTENT_BELOW

OF_STRATEGIES = {
    *("fsdp", "fsdp_version", "fsdp_config", "dp_shard_size", "dp_replicate_size", "deepspeed"),
    *("ddp_comm_hook", "ddp_comm_state_option", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    "ddp_find_unused_parameters",
}
"""Keys that belong to one strategy."""
_OTHERS: Mapping[str, Mapping[str, Any]] = {
    "DDP": {},
    "FSDP2": {"fsdp_version": 2},
    "FSDP2 with reshard_after_forward: false": {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}},
    "HSDP (dp_shard_size: node)": {"fsdp_version": 2, "dp_shard_size": "node"},
    "ZeRO-2": {"deepspeed": {"zero_optimization": {"stage": 2}}},
    "ZeRO-3": {"deepspeed": {"zero_optimization": {"stage": 3}}},
}
# DeepSpeed's default (runtime/zero/config.py).
_HELD_ELEMENTS = 1_000_000_000
_EXPERT = re.compile(r"\.experts\.")


def planned_steps(
    cfg: RunConfig,
    shapes: Mapping[str, tuple[int, ...]],
    num_trained: int,
    model_config: Mapping[str, Any],
    *,
    num_nodes: int,
    num_processes: int,
    on_cpu: bool,
) -> list[PlannedStep]:
    """The config's own strategy first, where it is known what that sends, then others, the one that sends least first.

    `shapes` are those of the model's tensors as they are stored, `num_trained` the elements that are trained.
    """
    world_size = num_nodes * num_processes
    nodes = [rank // num_processes for rank in range(world_size)]
    found: dict[tuple[Layout, float], PlannedStep] = {}
    for name, _, other in candidates(cfg):
        try:
            kind, _, num_shards = strategy(other, world_size, num_processes)
        except ConfigError:
            continue  # so many ranks cannot be divided so
        element = ElementTypes(other, is_zero=kind == "zero", on_cpu=on_cpu)
        layout = layout_of(other, kind, num_shards, sum(map(math.prod, shapes.values())))
        if not _is_known(other, kind) or (layout, element.gradient) in found:
            continue
        numbers = _sizes(other, shapes, num_trained, element, world_size)
        found[layout, element.gradient] = PlannedStep(
            name or strategy_name(other, kind, num_shards, world_size),
            not name,
            node_sends_bytes(layout, numbers, nodes, "gloo" if on_cpu else "nccl"),
            _flops(other, shapes, num_trained, model_config, numbers.num_micro_batches),
            _state_bytes(other, layout, numbers, element, world_size),
        )
    return sorted(found.values(), key=lambda one: (not one.is_own, one.node_sends_bytes))


def candidates(cfg: RunConfig) -> Iterator[tuple[str, Mapping[str, Any], RunConfig]]:
    """The config itself, without a name, and with each other strategy that the rules of configs allow, by its keys."""
    yield "", {}, cfg
    plain = {key: value for key, value in cfg.flat().items() if key not in OF_STRATEGIES}
    for name, keys in _OTHERS.items():
        if "deepspeed" in keys and importlib.util.find_spec("deepspeed") is None:
            continue
        with contextlib.suppress(ConfigError):
            yield name, keys, resolve_mapping({**plain, **keys})


class ElementTypes:
    """Bytes of one element, by what it is; `gradient` is one as it travels."""

    def __init__(self, cfg: RunConfig, *, is_zero: bool, on_cpu: bool) -> None:
        asked = cfg.precision.compute
        self.compute = 4 if asked == "float32" or (asked == "auto" and on_cpu) else 2
        self.trained = self.compute if is_zero or cfg.precision.low_precision_weights else 4
        rounded = cfg.parallel.fsdp_settings.reduce_dtype == "bfloat16" or cfg.parallel.ddp_comm_hook in _IN_16_BITS
        self.gradient = 2 if rounded else self.trained
        self.master = 4 if is_zero and self.compute == 2 else 0


_IN_16_BITS = ("bf16", "fp16")


def _is_known(cfg: RunConfig, kind: str) -> bool:
    """Whether what a strategy sends is known beforehand."""
    if kind == "zero":
        packed = cfg.adapter.quantized_bits is not None
        return not packed and not any(cfg.deepspeed.zero.get(key) for key in _QUANTIZED_TRAFFIC)
    if kind == "fsdp":
        return cfg.adapter.quantized_bits is None
    return cfg.parallel.ddp_comm_hook not in ("power_sgd", "batched_power_sgd")


def layout_of(cfg: RunConfig, kind: str, num_shards: int, num_parameters: int) -> Layout:
    """How the strategy of this `kind` spreads a model of so many parameters."""
    parallel, zero = cfg.parallel, cfg.deepspeed.zero
    if kind == "fsdp":
        settings = parallel.fsdp_settings
        kept = settings.reshard_after_forward is False
        return Layout("fsdp", num_shards, keeps_gathered=kept, reduces_each=settings.sync_each_batch)
    if kind == "zero":
        held = min(_number(zero, key, _HELD_ELEMENTS) for key in ("stage3_max_live_parameters", _REUSE))
        hpz = int(_number(zero, "zero_hpz_partition_size", 1))
        # Backwards, all of it comes again within the distance in which it is kept.
        return Layout("zero", stage=cfg.deepspeed.stage, keeps_gathered=2 * num_parameters <= held, hpz=max(1, hpz))
    return Layout("ddp")


_REUSE = "stage3_max_reuse_distance"
_QUANTIZED_TRAFFIC = ("zero_quantized_weights", "zero_quantized_gradients")


def _sizes(
    cfg: RunConfig, shapes: Mapping[str, tuple[int, ...]], num_trained: int, element: ElementTypes, world_size: int
) -> StepSizes:
    num_stored = sum(map(math.prod, shapes.values()))
    # An adapter's tensors come beside those of the model.
    num_parameters = num_stored + (num_trained if cfg.adapter.adapter else 0)
    threshold = _number(cfg.deepspeed.zero, "stage3_param_persistence_threshold", PERSISTENT_BELOW)
    persistent = sum(size for size in map(math.prod, shapes.values()) if size <= threshold)
    optimizer = cfg.optimizer
    accumulated = num_micro_batches(global_batch(optimizer, world_size), optimizer.micro_batch_size, world_size)
    is_gathered_again = cfg.adapter.adapter and cfg.parallel.checkpoints_activations  # plan.zero_gathers
    return StepSizes(
        num_parameters,
        num_trained,
        parameter_bytes=element.compute,
        gradient_bytes=element.gradient,
        num_micro_batches=accumulated,
        num_persistent=persistent,
        num_again=elements_of_layers(alike_of(shapes), threshold) if is_gathered_again else 0,
    )


def _number(settings: Mapping[str, Any], key: str, otherwise: float) -> float:
    """A number of DeepSpeed's settings; `auto` is decided when the model is there, and near the default."""
    value = settings.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def _flops(
    cfg: RunConfig,
    shapes: Mapping[str, tuple[int, ...]],
    num_trained: int,
    model_config: Mapping[str, Any],
    num_micro_batches: int,
) -> float | None:
    """Of one rank's part of a step, recomputation included; None for experts of which it is not known how many work."""
    num_stored = sum(map(math.prod, shapes.values()))
    of_experts = sum(math.prod(shape) for name, shape in shapes.items() if _EXPERT.search(name))
    active = 1.0
    if of_experts:
        asked = model_config.get("num_experts_per_tok")
        names = FAMILIES.get(str(model_config.get("model_type")), Family()).num_experts_keys
        there = next((model_config[key] for key in names if isinstance(model_config.get(key), int)), None)
        if not isinstance(asked, int) or not there:
            return None
        active = min(1.0, asked / there)
    at_work = num_stored - (1 - active) * of_experts
    trained = num_trained if cfg.adapter.adapter else num_trained * at_work / num_stored
    of_token = training_flops_per_token(round(at_work), round(trained))
    of_token += 2.0 * at_work if cfg.parallel.checkpoints_activations else 0.0
    return of_token * num_micro_batches * cfg.optimizer.micro_batch_size * cfg.data.sequence_len


def _state_bytes(cfg: RunConfig, layout: Layout, sizes: StepSizes, element: ElementTypes, world_size: int) -> float:
    """Without activations, buffers and what is gathered for the moment, and with nothing offloaded: at least this."""
    if cfg.deepspeed.offloads or cfg.parallel.fsdp_settings.offload_params:
        return 0.0
    frozen = sizes.num_parameters - sizes.num_trained
    bits = cfg.adapter.quantized_bits
    weights = frozen * (bits / 8 if bits else element.compute) + sizes.num_trained * element.trained
    # Gradients are held in the weights' type, whatever they travel in.
    gradients = sizes.num_trained * element.trained
    each = element.master or element.trained
    optimizer = sizes.num_trained * (element.master + state_bytes(cfg.optimizer.optimizer, each, is_matrix=True))
    if layout.kind == "ddp":
        return weights + gradients + optimizer
    if layout.kind == "fsdp":
        return (weights + gradients + optimizer) / layout.num_shards
    return (
        weights / (world_size if layout.stage == 3 else 1)
        + gradients / (world_size if layout.stage >= 2 else 1)
        + optimizer / world_size
    )


def strategy_name(cfg: RunConfig, kind: str, num_shards: int, world_size: int) -> str:
    if kind == "zero":
        return f"ZeRO-{cfg.deepspeed.stage}"
    if kind != "fsdp":
        hook = cfg.parallel.ddp_comm_hook
        return "DDP" if hook == "none" else f"DDP with ddp_comm_hook: {hook}"
    name = "FSDP2" if num_shards == world_size else f"HSDP (shards over {num_shards} ranks)"
    settings = cfg.parallel.fsdp_settings
    changed = {
        "reshard_after_forward: false": not settings.reshard_after_forward,
        "sync_each_batch: true": settings.sync_each_batch,
        "reduce_dtype: bfloat16": settings.reduce_dtype == "bfloat16",
    }
    told = ", ".join(key for key, is_so in changed.items() if is_so)
    return f"{name} with {told}" if told else name
