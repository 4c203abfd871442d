"""What one rank does under a config as it is, on so many nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from allranks.cluster.cores import threads_of_rank
from allranks.config import RunConfig
from allranks.config.batch import global_batch, num_micro_batches
from allranks.config.sections.adapter import AdapterConfig
from allranks.config.sections.deepspeed import BATCH_KEYS
from allranks.config.stored_quantization import as_stored
from allranks.config.strategy import strategy
from allranks.plan.adapter_size import adapted_matrices, adapted_parameters, continued, is_linear, num_elements
from allranks.plan.counted import alike, elements_below, num_parameters
from allranks.plan.model_shape import shape_of
from allranks.plan.optimizer_state import state_bytes, step_copies
from allranks.plan.step_traffic import StepSizes
from allranks.plan.strategies import ElementTypes, layout_of, strategy_name
from allranks.plan.usual_targets import usual_targets
from allranks.plan.workload import (
    BUCKET_ELEMENTS,
    DDP_BUCKET_MEBIBYTES,
    FIRST_BUCKET_BYTES,
    PERSISTENT_BELOW,
    PREFETCH_ELEMENTS,
    Attention,
    ElementBytes,
    Method,
    ModelShape,
    Workload,
)
from allranks.plan.zero_gathers import gathered_again


def own_workload(
    cfg: RunConfig,
    model_config: Mapping[str, Any],
    *,
    num_nodes: int,
    gpus_per_node: int,
    on_cpu: bool,
    labelled: float = 1.0,
) -> Workload:
    """The config's own, by its model's config.json.

    Raises:
        ConfigError: its strategy does not divide so many ranks, or its weights are stored as training refuses them.
        UnknownShapeError: `model_config` does not tell the model's tensors.
    """
    cfg = as_stored(cfg, model_config)
    shape = shape_of(model_config)
    tokens = cfg.data.sequence_len
    trained = Trained.of(cfg, model_config, shape)
    made = workload_of(cfg, trained, shape, num_nodes, gpus_per_node, on_cpu, tokens, labelled)
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
        num_again=gathered_again(workload),
    )


def num_frozen(workload: Workload) -> int:
    """Elements that are held and not trained."""
    elements = num_parameters(workload.shape)
    return elements if workload.method != "full" else elements - workload.num_trained


def method_of(cfg: RunConfig) -> Method:
    if cfg.adapter.adapter is None:
        return "full"
    return "qlora" if cfg.adapter.quantized_bits else "lora"


@dataclass(frozen=True)
class Trained:
    """What a method trains, under any strategy: with an adapter `matrices` and `parameters` are those that it adds to,
    and `num_packed` elements of the model are held in 4 or 8 bits."""

    adapter: AdapterConfig
    matrices: Mapping[str, tuple[int, int]]
    num_elements: int
    num_packed: int
    share_of_matrices: float
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, cfg: RunConfig, model_config: Mapping[str, Any], shape: ModelShape) -> Trained:
        adapter = cfg.adapter
        if not adapter.adapter:
            return cls(adapter, {}, num_parameters(shape), 0, _share_of_matrices(shape))
        if adapter.lora_model_dir:
            adapter = continued(adapter)
        if not any((adapter.lora_target_linear, adapter.lora_target_modules, adapter.lora_target_parameters)):
            adapter = adapter.model_copy(update={"lora_target_modules": usual_targets(model_config.get("model_type"))})
        return cls(
            adapter,
            adapted_matrices(shape.tensors, model_config, adapter),
            num_elements(shape.tensors, model_config, adapter),
            _num_packed(shape, adapter) if adapter.quantized_bits else 0,
            share_of_matrices=1.0,
            parameters=adapted_parameters(shape.tensors, model_config, adapter),
        )


def workload_of(
    cfg: RunConfig,
    trained: Trained,
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
    method = method_of(cfg)
    micro_batch = cfg.optimizer.micro_batch_size
    hidden = shape.hidden
    copies = step_copies(cfg.optimizer.optimizer, decays=cfg.optimizer.weight_decay > 0, on_cpu=on_cpu)
    return Workload(
        name=strategy_name(cfg, kind, num_shards, num_ranks) if num_ranks > 1 or kind == "zero" else "one process",
        shape=shape,
        method=method,
        layout=layout_of(cfg, kind, num_shards, num_parameters(shape)),
        num_ranks=num_ranks,
        ranks_per_node=gpus_per_node,
        num_trained=trained.num_elements,
        micro_batch_size=micro_batch,
        num_micro_batches=num_micro_batches(global_batch(cfg.optimizer, num_ranks), micro_batch, num_ranks),
        tokens=tokens or cfg.data.sequence_len,
        element=_element_bytes(cfg, types, trained.share_of_matrices),
        evaluation_batch_size=_evaluation_batch_size(cfg),
        labelled=labelled,
        lora_rank=(adapter.lora_r or 0) if adapter.adapter else 0,
        lora_dropout=adapter.lora_dropout > 0,
        adapted=trained.matrices,
        adapted_parameters=trained.parameters,
        num_packed=trained.num_packed,
        trains_embeddings=method == "full" or _trains_ends(adapter),
        recomputes=parallel.checkpoints_activations,
        offloads_activations=parallel.offloads_activations,
        offloads_optimizer=cfg.deepspeed.offloads or parallel.fsdp_settings.offload_params,
        offloads_parameters=parallel.fsdp_settings.offload_params or "offload_param" in zero,
        attention=_attention(cfg, on_cpu),
        masks_row=cfg.model.attn_implementation in ("sdpa", "eager"),
        chunks_logits=cfg.kernels.chunked_cross_entropy is not False,
        is_compiled=parallel.torch_compile is True or (parallel.torch_compile == "auto" and not on_cpu),
        on_cpu=on_cpu,
        num_threads=threads_of_rank(gpus_per_node) if on_cpu else 0,
        optimizer=cfg.optimizer.optimizer,
        foreach=cfg.optimizer.optimizer != "adamw_torch_fused",
        foreach_copies=copies.of_all,
        each_copy_bytes=copies.each_bytes(types.master or types.trained),
        bucket_bytes=(parallel.ddp_bucket_cap_mb or DDP_BUCKET_MEBIBYTES) * 2**20,
        first_bucket_bytes=(parallel.ddp_bucket_cap_mb or 0) * 2**20 or FIRST_BUCKET_BYTES,
        bucket_elements=_setting(zero, "reduce_bucket_size", hidden * hidden, BUCKET_ELEMENTS),
        prefetch_elements=_setting(zero, "stage3_prefetch_bucket_size", 0.9 * hidden * hidden, PREFETCH_ELEMENTS),
        persistent_below=_setting(zero, "stage3_param_persistence_threshold", 10 * hidden, PERSISTENT_BELOW),
        deepspeed_batch=[key for key in BATCH_KEYS if isinstance(cfg.deepspeed.settings.get(key), int)],
        has_batch_size=bool(cfg.optimizer.batch_size),
    )


def _evaluation_batch_size(cfg: RunConfig) -> int:
    """Rows, where the config says another number than that of training, which is what holds if it says none."""
    size = cfg.evaluation.eval_batch_size or 0
    has_data = bool(cfg.data.test_datasets) or cfg.data.val_set_size > 0
    return size if has_data and size > cfg.optimizer.micro_batch_size else 0


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
        number * math.prod(size)
        for (_, size), number in alike(shape).items()
        if len(size) > 1 and shape.vocabulary not in size
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
    for (name, size), number in alike(shape).items():
        module, _, kind = name.rpartition(".")
        if kind != "weight" or len(size) != 2 or any(module == one or module.endswith(f".{one}") for one in kept):
            continue
        if is_linear(module) or (adapter.quantize_moe_experts and ".experts." in module):
            elements += number * math.prod(size)
    return elements


def _trains_ends(adapter: AdapterConfig) -> bool:
    return any(name.endswith(("embed_tokens", "lm_head", "wte")) for name in adapter.lora_modules_to_save or ())


def _attention(cfg: RunConfig, on_cpu: bool) -> Attention:
    asked = cfg.model.attn_implementation
    if asked == "eager":
        return "eager"
    return "sdpa" if on_cpu or asked == "sdpa" else "flash"
