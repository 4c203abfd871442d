"""Build the model that a rank trains. Read `build_model` from top to bottom."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.listing import few
from allranks.model import attention
from allranks.model.files import stored_config
from allranks.model.freeze import freeze_all_but
from allranks.model.head import LogitsSpec, LossHead, logits_spec
from allranks.model.isolation import choose_attention, probe_isolation
from allranks.model.kernels import apply_liger, loss_kernel
from allranks.model.layers import find_layers
from allranks.model.loading import fill, plan_loading
from allranks.model.loss import PackedKwargs, takes_logits_to_keep
from allranks.model.noise import EmbeddingNoise
from allranks.model.offload import offload_layer_inputs
from allranks.model.parallel import checkpoint_activations, compile_layers, replicate, shard
from allranks.model.placement import Placement
from allranks.model.positions import position_warning
from allranks.model.precision import Precision, resolve_precision, set_dtypes
from allranks.model.quantized.mxfp4 import gather_blocks
from allranks.model.quantized.quantize import quantize_layers
from allranks.model.quantized.settings import quantization
from allranks.model.quantized.stored import gather_packed, stored_settings
from allranks.model.router import router_loss
from allranks.model.sharding import materialise
from allranks.model.source import model_folder, read_config
from allranks.model.stored_kind import stored_kind_warning
from allranks.model.train_model import TrainModel
from allranks.model.vocabulary import grow_vocabulary
from allranks.model.weights import find_weights
from allranks.model.zero import engine_settings, partition


def build_model(
    cfg: RunConfig,
    placement: Placement,
    *,
    tokenizer: Any = None,
    without_values: Callable[[], AbstractContextManager[Any]] | None = None,
) -> TrainModel:
    """Load `cfg.model.base_model`, with its adapter, onto this rank, spread as `placement` says.

    Every rank calls it at the same time. No rank holds more than its part of the weights, unless it holds all of them.
    `tokenizer`: where it has more tokens than the model has embeddings, these grow.
    `without_values` makes contexts (of fake tensors) in which memory is given and no values; then config.json is all
    that is read of the model.

    Raises:
        ConfigError: for whatever the config, the model and its weights do not agree on.
    """
    precision = resolve_precision(cfg, placement.device, placement.kind)
    folder = model_folder(cfg)
    config = read_config(cfg, folder)
    position_warning(config.to_dict(), cfg)  # what cannot be; the rest is told by who starts the run
    stored_kind_warning(stored_config(cfg), cfg)  # likewise
    before = stored_settings(config, cfg, folder)
    quantized = quantization(cfg, placement, precision, before)
    stored = gather_blocks(find_weights(folder)) if without_values is None else {}
    if before:
        stored = gather_packed(stored)
    grown = grow_vocabulary(config, cfg, tokenizer)

    kernel = loss_kernel(cfg, placement.device)
    model, packed_kwargs, must_probe = _without_weights(config, cfg, precision, placement.device)
    apply_liger(model, cfg, placement.device)
    spec = _wanted_logits_spec(model, cfg)
    router = router_loss(model, cfg)
    if router is not None and packed_kwargs == "mask":
        raise ConfigError(
            f"output_router_logits: {type(model).__name__} needs a mask to keep packed documents apart, with which its "
            "router loss cannot be made; set sample_packing: false and micro_batch_size: 1, or switch it off in "
            "overrides_of_model_config"
        )
    rows = grown(model)
    plan = plan_loading(model, stored, rows) if without_values is None else None
    config.dtype = precision.compute  # what the model will be exported in
    packed = quantize_layers(model, quantized) if quantized else None
    peft_config = None
    if cfg.adapter.adapter:
        # Only now: PEFT brings bitsandbytes and more, seconds that a full fine-tune need not wait.
        from allranks.model.adapter import add_adapter, start_adapter

        peft_config = add_adapter(model, cfg)
        if quantized and quantized.experts:
            from allranks.model.quantized.experts import wrap_packed

            wrap_packed(model)
    elif cfg.optimizer.unfrozen_parameters:
        freeze_all_but(model, cfg.optimizer.unfrozen_parameters)
    set_dtypes(model, precision)
    counts = _count(model)
    layers = find_layers(model, cfg.parallel.fsdp_settings.transformer_layer_cls_to_wrap)
    if cfg.parallel.checkpoints_activations:
        checkpoint_activations(model)
    if cfg.parallel.offloads_activations:
        offload_layer_inputs(model)

    offload = placement.kind == "fsdp" and cfg.parallel.fsdp_settings.offload_params
    if placement.kind == "fsdp":
        shard(model, layers, cfg, placement, precision)
    giving_memory = without_values or nullcontext
    with giving_memory():
        if placement.zero_stage == 3:
            partition(model, engine_settings(cfg, placement, precision, config), placement.device)
        else:
            materialise(model, torch.device("cpu") if offload else placement.device, buffers=placement.device)
    if plan is not None:
        with torch.no_grad():
            fill(model, plan)
            if peft_config is not None:
                start_adapter(model, cfg, cfg.optimizer.seed)
    _check_complete(model)

    model.train()
    # ZeRO-3's hooks, which gather parameters, cannot be compiled.
    compiled = placement.zero_stage < 3 and compile_layers(layers, cfg, placement.device)
    with giving_memory():
        module = replicate(model, cfg, placement) if placement.kind == "ddp" else model
    built = TrainModel(
        module=module,
        hf_model=model,
        config=config,
        placement=placement,
        precision=precision,
        layer_classes=tuple(sorted({_class_name(layer) for layer in layers})),
        num_parameters=counts[0] + (packed.num_packed_away if packed else 0),
        num_trainable=counts[1],
        packed=packed,
        peft_config=peft_config,
        sync_each_batch=bool(cfg.parallel.fsdp_settings.sync_each_batch),
        packed_kwargs=packed_kwargs,
        keeps_logits=takes_logits_to_keep(model),
        head=LossHead(model, spec, num_chunks=cfg.kernels.chunked_cross_entropy_num_chunks, kernel=kernel)
        if spec
        else None,
        router=router,
        compiled=compiled,
        noise=EmbeddingNoise(model, cfg.optimizer.neftune_noise_alpha) if cfg.optimizer.neftune_noise_alpha else None,
    )
    if plan is None:
        return built  # there is nothing to try
    if must_probe and placement.kind != "zero":
        probe_isolation(built)
    elif must_probe:
        built.probe = lambda: probe_isolation(built)  # DeepSpeed's engine must be there for a forward pass
    return built


def _wanted_logits_spec(model: PreTrainedModel, cfg: RunConfig) -> LogitsSpec | None:
    """How to make the loss without full logits, or None: not wanted, or not known for this model."""
    kernels = cfg.kernels
    asked = [
        key
        for key in ("chunked_cross_entropy", "cut_cross_entropy", "liger_fused_linear_cross_entropy")
        if getattr(kernels, key)
    ]
    if kernels.chunked_cross_entropy is False and not asked:
        return None
    spec = logits_spec(model)
    if spec is None and asked:
        raise ConfigError(
            f"{asked[0]}: {type(model).__name__} does more to its logits than is known here, so its loss needs all of "
            f"them; remove {asked[0]}"
        )
    return spec


def _without_weights(
    config: PreTrainedConfig, cfg: RunConfig, precision: Precision, device: torch.device
) -> tuple[PreTrainedModel, PackedKwargs, bool]:
    """Make the model with its parameters on the meta device and its buffers computed for real.

    Buffers that are not stored (rotary frequencies) come out of the constructor; had it run on the meta device, they
    would have to be computed a second time, by code that only some models have.
    """
    attention.register()
    dtype = precision.trainable if precision.trainable == precision.compute else torch.float32

    def make(implementation: str) -> PreTrainedModel:
        with parameters_on_meta():
            return AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation=implementation,
                trust_remote_code=cfg.model.trust_remote_code,
            )

    return choose_attention(make, config, cfg, device)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within it, the parameters of a model that is made are on the meta device; its buffers are computed for real."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        moved = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        moved.__dict__.update(parameter.__dict__)
        return moved

    handle = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _count(model: nn.Module) -> tuple[int, int]:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _check_complete(model: nn.Module) -> None:
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise ConfigError(f"{type(model).__name__}: {few(left)} could not be given values")


def _class_name(module: nn.Module) -> str:
    # FSDP2 swaps the class of what it shards for a subclass named FSDP….
    return type(module).__name__.removeprefix("FSDP")
