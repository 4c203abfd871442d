"""DeepSpeed below the loop: importing it, the settings that it is given, and ZeRO-3's partitioned parameters."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedConfig

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.model.placement import Placement
from allranks.model.precision import Precision


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told of this rank's device. Raises ConfigError where it is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("deepspeed: the library is not installed: pip install 'allranks[deepspeed]'")
    os.environ["DS_ACCELERATOR"] = device.type
    # Which device it takes; under Slurm a process may see its own GPU only, which is number 0 whatever its local rank.
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    # Its logger tells at INFO what it does at every step of its start.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # It calls torch.distributed by names that the newest torch has replaced.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On CPU it would compile a C++ helper for collectives in shared memory at the first start; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def engine_settings(
    cfg: RunConfig, placement: Placement, precision: Precision, config: PreTrainedConfig, *, num_micro_batches: int = 1
) -> dict[str, Any]:
    """What DeepSpeed is given: the config's settings with every `auto` replaced, batch and precision as they are here.

    The optimizer and the schedule are allranks' own, made of the same numbers, so they are not in it.
    """
    given: dict[str, Any] = cfg.deepspeed.settings
    settings = {key: value for key, value in given.items() if key not in ("optimizer", "scheduler", "train_batch_size")}
    settings["zero_optimization"] = zero = dict(settings.get("zero_optimization", {}))
    hidden = getattr(config.get_text_config(), "hidden_size", None) or 1024
    # What transformers' Trainer puts for `auto`.
    sizes = {
        "reduce_bucket_size": hidden * hidden,
        "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
        "stage3_param_persistence_threshold": 10 * hidden,
    }
    for key, size in sizes.items():
        if zero.get(key) == "auto":
            zero[key] = size
    settings = _without_auto(settings)
    zero = settings["zero_optimization"]
    # Its own linear function would replace torch's for the whole process; it saves nothing that torch does not.
    zero.setdefault("memory_efficient_linear", False)
    bf16, fp16 = (precision.compute == dtype for dtype in (torch.bfloat16, torch.float16))
    settings |= {
        "train_micro_batch_size_per_gpu": cfg.optimizer.micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": cfg.optimizer.max_grad_norm,
        "bf16": {**settings.get("bf16", {}), "enabled": bf16},
        "fp16": {**settings.get("fp16", {}), "enabled": fp16},
        "steps_per_print": settings.get("steps_per_print", 1 << 62),
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW steps on the CPU as well, and needs no C++ build at the start.
        "zero_force_ds_cpu_optimizer": False,
    }
    return settings


def _without_auto(settings: dict[str, Any]) -> dict[str, Any]:
    """What is left to DeepSpeed is left out."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value != "auto"
    }


def partition(model: nn.Module, settings: dict[str, Any], device: torch.device) -> None:
    """Give every parameter on the meta device its ZeRO-3 partition, a module at a time: no rank ever holds them all.

    The partitions' values are arbitrary until they are filled.
    """
    deepspeed = import_deepspeed(device)
    from deepspeed.utils import groups

    copies = settings["zero_optimization"].get("zero_hpz_partition_size") or 1
    made: dict[int, nn.Parameter] = {}  # parameters that were one (tied weights) are one again
    for module in model.modules():
        fresh = nn.Module()
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                whole = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=parameter.requires_grad)
                made[id(parameter)] = whole
                fresh.register_parameter(name, whole)
            setattr(module, name, made[id(parameter)])
        if fresh._parameters:
            # The first call makes the groups of ranks that keep copies (ZeRO++), and a second one may not.
            copying = groups._get_zero_param_intra_parallel_group() if copies > 1 else None
            deepspeed.zero.Init(module=fresh, config_dict_or_path=settings, zero_param_parallel_group=copying)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def is_partitioned(tensor: Tensor) -> bool:
    """Whether DeepSpeed has cut this parameter into flat pieces, one a rank."""
    return hasattr(tensor, "ds_tensor")


@contextmanager
def whole(parameter: Any) -> Iterator[Tensor]:
    """Memory for all of a partitioned parameter, to be written to; this rank's piece of it is kept."""
    values = torch.empty(parameter.ds_shape, dtype=parameter.dtype)
    yield values
    pieces = [(parameter.ds_tensor, dist.get_rank(parameter.ds_process_group))]
    if parameter.ds_secondary_tensor is not None:  # the copy that the ranks of a node keep together (ZeRO++)
        pieces.append((parameter.ds_secondary_tensor, dist.get_rank() % parameter.ds_secondary_tensor_group_size))
    for piece, place in pieces:
        first = place * piece.ds_numel
        size = max(0, min(parameter.ds_numel - first, piece.ds_numel))
        piece[:size].copy_(values.view(-1)[first : first + size])
        piece[size:].zero_()  # padding, which takes part in the optimizer's arithmetic
