"""What a config would be on some nodes: under its own strategy, and under each other that it could run with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from allranks.config import RunConfig
from allranks.config.load import resolve_mapping
from allranks.config.sections.adapter import AdapterConfig
from allranks.config.strategy import strategy
from allranks.errors import ConfigError
from allranks.plan.adapter_size import adapted_matrices, is_linear, num_elements
from allranks.plan.model_shape import elements_below, num_parameters, shape_of
from allranks.plan.optimizer_state import state_bytes
from allranks.plan.step_traffic import StepSizes
from allranks.plan.strategies import OF_STRATEGIES, ElementTypes, candidates, layout_of, strategy_name
from allranks.plan.workload import Attention, ElementBytes, Method, ModelShape, Workload

_METHODS: Mapping[Method, Mapping[str, Any]] = {
    "full": {},
    "lora": {"adapter": "lora"},
    "qlora": {"adapter": "qlora"},
}
# Where the config has no adapter yet: every linear layer, as the QLoRA paper found to be enough (arXiv 2305.14314).
_USUAL_ADAPTER = {"lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
_OF_ADAPTERS = (*AdapterConfig.model_fields, "adapter")
# What PEFT takes where nothing is asked (TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING of 0.21): in all families
# that are known here it is these two.
_USUAL_TARGETS = ("q_proj", "v_proj")
_BUCKET_ELEMENTS, _PREFETCH_ELEMENTS, _PERSISTENT_BELOW = 500_000_000, 50_000_000, 100_000
"""DeepSpeed's defaults (runtime/zero/config.py)."""
_DDP_BUCKET_BYTES = 25 * 2**20
_MOST_MICRO_BATCHES = 64


def workloads(
    cfg: RunConfig,
    model_config: Mapping[str, Any],
    *,
    num_nodes: int,
    gpus_per_node: int,
    on_cpu: bool = False,
    stored: Mapping[str, tuple[int, ...]] | None = None,
    tokens: int | None = None,
    labelled: float = 1.0,
) -> list[Workload]:
    """The config's own workload first, then every other strategy, method, micro-batch size and recomputation.

    `model_config`: the contents of the model's config.json; `stored`: `stored_size.stored_shapes` of its files, where
    they are there. `tokens` of a row and the part of them that is `labelled`: of the prepared data, where it is there;
    `sequence_len` and all of them otherwise. The global batch is the same in all of them.

    Raises:
        ConfigError: the config's own strategy does not divide so many ranks.
        UnknownShapeError: `model_config` does not tell the model's tensors.
    """
    shape = shape_of(model_config, stored)
    found: list[Workload] = []
    for method_keys, of_method in _methods(cfg):
        trained = _Trained.of(of_method, model_config, shape)
        for name, keys, other in candidates(of_method):
            is_own = not (name or method_keys)
            if not name and method_keys:
                continue  # of another method, every strategy has its name
            try:
                made = _workload(other, trained, shape, num_nodes, gpus_per_node, on_cpu, tokens, labelled)
            except ConfigError:
                if is_own:
                    raise
                continue  # so many ranks cannot be divided so
            changes = {**_strategy_changes(cfg, name, keys), **method_keys}
            found += _variants(replace(made, name=name or made.name, is_own=is_own, changes=changes), cfg)
    return list(_once(found))


def own_workload(
    cfg: RunConfig, model_config: Mapping[str, Any], *, num_nodes: int, gpus_per_node: int, on_cpu: bool
) -> Workload:
    """The first of `workloads` alone, with the same errors."""
    shape = shape_of(model_config)
    tokens = cfg.data.sequence_len
    trained = _Trained.of(cfg, model_config, shape)
    made = _workload(cfg, trained, shape, num_nodes, gpus_per_node, on_cpu, tokens, labelled=1.0)
    return replace(made, is_own=True)


def step_sizes(workload: Workload) -> StepSizes:
    """What `step_traffic` asks of a workload. Weights in 4 or 8 bits travel as they are held."""
    element, frozen = workload.element, num_frozen(workload)
    total = frozen + workload.num_trained
    of_weights = workload.num_packed * element.packed + (total - workload.num_packed) * element.compute
    return StepSizes(
        total,
        workload.num_trained,
        parameter_bytes=of_weights / total,
        gradient_bytes=element.gradient,
        num_micro_batches=workload.num_micro_batches,
        num_persistent=elements_below(workload.shape, workload.persistent_below),
    )


def num_frozen(workload: Workload) -> int:
    """Elements that are held and not trained."""
    elements = num_parameters(workload.shape)
    return elements if workload.method != "full" else elements - workload.num_trained


def _methods(cfg: RunConfig) -> Iterator[tuple[Mapping[str, Any], RunConfig]]:
    """The config itself, and as a full fine-tune, with LoRA and with Q-LoRA, by the keys that change."""
    yield {}, cfg
    flat = cfg.flat()
    without = {key: value for key, value in flat.items() if key not in _OF_ADAPTERS}
    had = {key: value for key, value in flat.items() if key in _OF_ADAPTERS}
    for method, keys in _METHODS.items():
        if method == _method(cfg) or cfg.optimizer.unfrozen_parameters:
            continue
        changes: dict[str, Any]
        if method == "full":
            other, changes = without, dict.fromkeys(sorted(_given(cfg)))
        else:
            own = {key: value for key, value in had.items() if key not in ("load_in_4bit", "load_in_8bit")}
            changes = {**({} if cfg.adapter.adapter else _USUAL_ADAPTER), **keys}
            changes |= {key: None for key in ("load_in_4bit", "load_in_8bit") if had.get(key)}
            other = {**without, **own, **{key: value for key, value in changes.items() if value is not None}}
        with contextlib.suppress(ConfigError):
            yield changes, resolve_mapping(other)


def _given(cfg: RunConfig) -> set[str]:
    """Keys of the adapter that are not at their defaults."""
    fields = AdapterConfig.model_fields
    return {key for key in fields if getattr(cfg.adapter, key) != fields[key].default}


def _strategy_changes(cfg: RunConfig, name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    if not name:
        return {}
    default = type(cfg.parallel).model_fields
    given = {key for key in OF_STRATEGIES & set(default) if getattr(cfg.parallel, key) != default[key].default}
    given |= {"deepspeed"} if cfg.deepspeed.settings else set()
    return {**dict.fromkeys(sorted(given), None), **keys}


def _method(cfg: RunConfig) -> Method:
    if cfg.adapter.adapter is None:
        return "full"
    return "qlora" if cfg.adapter.quantized_bits else "lora"


@dataclass(frozen=True)
class _Trained:
    """What a method trains, under any strategy: with an adapter `matrices` are those that it adds to, and `num_packed`
    elements of the model are held in 4 or 8 bits."""

    adapter: AdapterConfig
    matrices: Mapping[str, tuple[int, int]]
    num_elements: int
    num_packed: int
    share_of_matrices: float

    @classmethod
    def of(cls, cfg: RunConfig, model_config: Mapping[str, Any], shape: ModelShape) -> _Trained:
        adapter = cfg.adapter
        if not adapter.adapter:
            return cls(adapter, {}, num_parameters(shape), 0, _share_of_matrices(shape))
        if not any((adapter.lora_target_linear, adapter.lora_target_modules)):
            adapter = adapter.model_copy(update={"lora_target_modules": list(_USUAL_TARGETS)})
        return cls(
            adapter,
            adapted_matrices(shape.tensors, model_config, adapter),
            num_elements(shape.tensors, model_config, adapter),
            _num_packed(shape, adapter) if adapter.quantized_bits else 0,
            share_of_matrices=1.0,
        )


def _workload(
    cfg: RunConfig,
    trained: _Trained,
    shape: ModelShape,
    num_nodes: int,
    gpus_per_node: int,
    on_cpu: bool,
    tokens: int | None,
    labelled: float,
) -> Workload:
    num_ranks = num_nodes * gpus_per_node
    kind, _, num_shards = strategy(cfg, num_ranks, gpus_per_node)
    types = ElementTypes(cfg, is_zero=kind == "zero", on_cpu=on_cpu)
    adapter, parallel, zero = trained.adapter, cfg.parallel, cfg.deepspeed.zero
    method = _method(cfg)
    batch = cfg.optimizer.batch_size
    per_rank = math.ceil(batch / num_ranks) if batch else None
    micro_batch = cfg.optimizer.micro_batch_size
    accumulated = cfg.optimizer.gradient_accumulation_steps
    hidden = shape.hidden
    return Workload(
        name=strategy_name(cfg, kind, num_shards, num_ranks) if num_ranks > 1 or kind == "zero" else "one process",
        shape=shape,
        method=method,
        layout=layout_of(cfg, kind, num_shards, num_parameters(shape)),
        num_ranks=num_ranks,
        ranks_per_node=gpus_per_node,
        num_trained=trained.num_elements,
        micro_batch_size=micro_batch,
        num_micro_batches=math.ceil(per_rank / micro_batch) if per_rank else accumulated,
        tokens=tokens or cfg.data.sequence_len,
        element=_element_bytes(cfg, types, trained.share_of_matrices),
        labelled=labelled,
        lora_rank=(adapter.lora_r or 0) if adapter.adapter else 0,
        lora_dropout=adapter.lora_dropout > 0,
        adapted=trained.matrices,
        num_packed=trained.num_packed,
        trains_embeddings=method == "full" or _trains_ends(adapter),
        recomputes=parallel.checkpoints_activations,
        offloads_activations=parallel.offloads_activations,
        offloads_optimizer=cfg.deepspeed.offloads or parallel.fsdp_settings.offload_params,
        offloads_parameters=parallel.fsdp_settings.offload_params or "offload_param" in zero,
        attention=_attention(cfg, on_cpu),
        chunks_logits=cfg.kernels.chunked_cross_entropy is not False,
        is_compiled=parallel.torch_compile is True or (parallel.torch_compile == "auto" and not on_cpu),
        on_cpu=on_cpu,
        optimizer=cfg.optimizer.optimizer,
        foreach=cfg.optimizer.optimizer != "adamw_torch_fused",
        bucket_bytes=(parallel.ddp_bucket_cap_mb or 25) * 2**20 if parallel.ddp_bucket_cap_mb else _DDP_BUCKET_BYTES,
        bucket_elements=_setting(zero, "reduce_bucket_size", hidden * hidden, _BUCKET_ELEMENTS),
        prefetch_elements=_setting(zero, "stage3_prefetch_bucket_size", 0.9 * hidden * hidden, _PREFETCH_ELEMENTS),
        persistent_below=_setting(zero, "stage3_param_persistence_threshold", 10 * hidden, _PERSISTENT_BELOW),
    )


def _setting(zero: Mapping[str, Any], key: str, auto: float, default: int) -> int:
    """A size in DeepSpeed's settings; `auto` becomes what `model.zero.engine_settings` makes of it."""
    value = zero.get(key, default)
    return int(auto) if value == "auto" else int(value)


def _element_bytes(cfg: RunConfig, types: ElementTypes, share: float) -> ElementBytes:
    settings = cfg.optimizer
    momentum = bool((settings.optim_args or {}).get("momentum"))
    each = int(types.master or types.trained)
    of_matrix, of_other = (
        state_bytes(settings.optimizer, each, is_matrix=is_matrix, momentum=momentum) for is_matrix in (True, False)
    )
    return ElementBytes(
        compute=types.compute,
        frozen=types.compute,
        trained=types.trained,
        gradient=types.gradient,
        master=types.master,
        state=share * of_matrix + (1 - share) * of_other,
        packed=_packed_bytes(cfg.adapter),
    )


def _share_of_matrices(shape: ModelShape) -> float:
    """Of hidden layers, which Muon treats in its own way."""
    elements = sum(
        math.prod(size) for name, size in shape.tensors.items() if len(size) > 1 and shape.vocabulary not in size
    )
    return elements / num_parameters(shape)


def _packed_bytes(adapter: AdapterConfig) -> float:
    """Of a quantized weight: in 4 bits a scale for each 64 of them, float32, or with `double_quant` one byte and a
    float32 for each 256 scales (QLoRA, arXiv 2305.14314, section 3); in 8 bits a float32 for each row, which is none.
    """
    match adapter.quantized_bits:
        case 4 if adapter.bnb_settings.bnb_4bit_use_double_quant:
            return 0.5 + 1 / 64 + 4 / (64 * 256)
        case 4:
            return 0.5 + 4 / 64
        case 8:
            return 1.0
    return 0.0


def _num_packed(shape: ModelShape, adapter: AdapterConfig) -> int:
    """Elements that bitsandbytes quantizes: linear layers but the output layer, and experts if they are asked for."""
    kept = (*(adapter.bnb_settings.llm_int8_skip_modules or ()), *(adapter.lora_modules_to_save or ()), "lm_head")
    elements = 0
    for name, size in shape.tensors.items():
        module, _, kind = name.rpartition(".")
        if kind != "weight" or len(size) != 2 or any(module == one or module.endswith(f".{one}") for one in kept):
            continue
        if is_linear(module) or (adapter.quantize_moe_experts and ".experts." in module):
            elements += math.prod(size)
    return elements


def _trains_ends(adapter: AdapterConfig) -> bool:
    return any(name.endswith(("embed_tokens", "lm_head", "wte")) for name in adapter.lora_modules_to_save or ())


def _attention(cfg: RunConfig, on_cpu: bool) -> Attention:
    asked = cfg.model.attn_implementation
    if asked == "eager":
        return "eager"
    return "sdpa" if on_cpu or asked == "sdpa" else "flash"


def _variants(workload: Workload, cfg: RunConfig) -> Iterator[Workload]:
    """It, and the same global batch in other micro-batches, with and without recomputation."""
    batch = cfg.optimizer.batch_size
    # Of a batch for all ranks some get less than others: the last micro-batch is filled up.
    per_rank = (
        math.ceil(batch / workload.num_ranks) if batch else workload.micro_batch_size * workload.num_micro_batches
    )
    yield workload
    for size in _sizes(per_rank, workload.micro_batch_size):
        for recomputes in (False, True):
            if size == workload.micro_batch_size and recomputes == workload.recomputes:
                continue
            accumulated = math.ceil(per_rank / size)
            changes = {**workload.changes, **_batch_changes(cfg, size, accumulated)}
            if recomputes != workload.recomputes:
                changes["gradient_checkpointing"] = recomputes
                if not recomputes and cfg.parallel.fsdp_settings.activation_checkpointing:
                    continue  # which says it in the settings of one strategy
            yield replace(
                workload,
                micro_batch_size=size,
                num_micro_batches=accumulated,
                recomputes=recomputes,
                offloads_activations=workload.offloads_activations and recomputes,
                is_own=False,
                changes=changes,
            )


def _sizes(per_rank: int, own: int) -> Sequence[int]:
    """Micro-batch sizes that divide a rank's batch: powers of two, and the config's own."""
    powers = (2**exponent for exponent in range(_MOST_MICRO_BATCHES.bit_length()))
    return sorted({own, *(size for size in powers if size <= per_rank and per_rank % size == 0)})


def _batch_changes(cfg: RunConfig, size: int, accumulated: int) -> dict[str, Any]:
    if size == cfg.optimizer.micro_batch_size:
        return {}
    sizes = {"micro_batch_size": size}
    return sizes if cfg.optimizer.batch_size else {**sizes, "gradient_accumulation_steps": accumulated}


def _once(found: Sequence[Workload]) -> Iterator[Workload]:
    """Each only once: on one node, HSDP is FSDP2, and the config's own strategy has a name among the others."""
    seen = set()
    for one in found:
        key = (one.layout, one.method, one.micro_batch_size, one.recomputes, one.element, one.offloads_parameters)
        if (*key, one.offloads_optimizer) not in seen:
            seen.add((*key, one.offloads_optimizer))
            yield one
