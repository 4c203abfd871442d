"""Spread a model over ranks: FSDP2, HSDP or DDP, recomputation of activations, compilation."""

import importlib.util
import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.model.comm_hooks import add_comm_hook
from allranks.model.placement import Placement
from allranks.model.precision import Precision


def shard(
    model: PreTrainedModel, layers: list[nn.Module], cfg: RunConfig, placement: Placement, precision: Precision
) -> None:
    """Cut the parameters of `model` (on the meta device) into shards over `placement.mesh`, in place.

    Every decoder layer is one unit that is gathered and dropped again; the embedding and the output layer are units of
    their own unless they share their weight (then one unit must hold both); the rest goes with the root.
    """
    options = cfg.parallel.fsdp_settings
    policy: OffloadPolicy = OffloadPolicy()
    if options.offload_params:
        pin = placement.device.type == "cuda" and options.cpu_offload_pin_memory is not False
        policy = CPUOffloadPolicy(pin_memory=pin)
    mixed = MixedPrecisionPolicy(
        param_dtype=precision.compute if precision.mixed else None, reduce_dtype=_reduce_dtype(cfg, precision)
    )
    common: dict[str, Any] = {"mesh": placement.mesh, "mp_policy": mixed, "offload_policy": policy}
    reshard = options.reshard_after_forward is not False
    for layer in layers:
        fully_shard(layer, reshard_after_forward=reshard, **common)
    ends = _ends(model)
    for module in ends:
        fully_shard(module, reshard_after_forward=reshard, **common)
    # What is left (the last norm, tied embeddings) is used at the beginning of the backward pass again.
    fully_shard(model, reshard_after_forward=False, **common)
    _prefetch([*ends[:1], *layers, *ends[1:]])


def _prefetch(units: list[nn.Module]) -> None:
    """Gather each unit while the one before it computes, in the forward pass and back.

    By itself FSDP2 begins to gather a unit when the program reaches it; with a short unit, or a slow host, the device
    then waits. It costs the memory of one more gathered unit.
    """
    for before, unit in pairwise(units):
        assert isinstance(before, FSDPModule) and isinstance(unit, FSDPModule)
        before.set_modules_to_forward_prefetch([unit])
        unit.set_modules_to_backward_prefetch([before])


def replicate(model: nn.Module, cfg: RunConfig, placement: Placement) -> nn.Module:
    """Wrap `model`, already on its device, in DistributedDataParallel."""
    parallel = cfg.parallel
    # Buffers of language models are constants; sending them before every forward pass buys nothing. (torch 2.13 renamed
    # the option.)
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    options: dict[str, Any] = {
        "forward_sync_buffers" if renamed else "broadcast_buffers": bool(parallel.ddp_broadcast_buffers)
    }
    if parallel.ddp_bucket_cap_mb is not None:
        options["bucket_cap_mb"] = parallel.ddp_bucket_cap_mb
    replicas = DistributedDataParallel(
        model,
        device_ids=[placement.device] if placement.device.type == "cuda" else None,
        find_unused_parameters=bool(parallel.ddp_find_unused_parameters),
        gradient_as_bucket_view=True,
        **options,
    )
    add_comm_hook(replicas, cfg)
    return replicas


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute each decoder layer in the backward pass instead of keeping its activations."""
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"gradient_checkpointing: {type(model).__name__} does not support it; set it to false")
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.2x
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def compile_layers(layers: list[nn.Module], cfg: RunConfig, device: torch.device) -> bool:
    """Compile every decoder layer by itself, if asked: equal layers share one graph, and sharding still sees them.

    `torch_compile: auto` compiles on CUDA where Triton is installed. Returns whether the layers are compiled.
    """
    wanted = cfg.parallel.torch_compile
    if wanted == "auto":
        wanted = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if not wanted:
        return False
    options = {}
    if cfg.parallel.torch_compile_backend:
        options["backend"] = cfg.parallel.torch_compile_backend
    if cfg.parallel.torch_compile_mode:
        options["mode"] = cfg.parallel.torch_compile_mode
    for layer in layers:
        layer.compile(**options)
    return True


def set_gradient_sync(module: nn.Module, *, last: bool, every_batch: bool, replicated: bool) -> None:
    """Say whether the coming backward pass is the last of its step, so that gradients travel only then.

    `every_batch` (FSDP): reduce-scatter after every micro-batch all the same, so that gradients are held in shards
    between micro-batches; replicas of HSDP still meet only once. `replicated`: the mesh has replicas.
    """
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = last
    elif isinstance(module, FSDPModule):
        module.set_is_last_backward(last)
        module.set_requires_gradient_sync(last or every_batch)
        if replicated:
            module.set_requires_all_reduce(last)


def reshard(module: nn.Module) -> None:
    """Drop what a forward pass without a backward pass left gathered, so that parameters are shards again.

    FSDP's root stays gathered after a forward pass, for the backward pass to come. Until then its parameters are plain
    tensors, which an optimizer made of them would hold on to, and train in vain.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _reduce_dtype(cfg: RunConfig, precision: Precision) -> torch.dtype | None:
    """What FSDP sends gradients in; None: in the type of the parameters that are computed with."""
    asked = cfg.parallel.fsdp_settings.reduce_dtype
    if asked is not None:
        return getattr(torch, asked)
    return torch.float32 if precision.mixed else None


def _ends(model: PreTrainedModel) -> list[nn.Module]:
    """The embedding and the output layer, where they are two and do not share parameters."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if any(end is None for end in ends):
        return []
    first, second = ({id(p) for p in end.parameters()} for end in ends)
    return [] if first & second or not first or not second else ends
