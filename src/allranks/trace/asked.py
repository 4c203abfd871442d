"""What a trace is asked for, as it goes from the command line's process to the one that imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allranks.config import RunConfig
from allranks.config.strategy import strategy
from allranks.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """A config on so many ranks; values that JSON can hold. `lengths`: of the documents of a micro-batch.

    `every_layer`: also where few layers would tell the same. `on_cpu`: the ranks have no GPU.
    """

    keys: Mapping[str, Any]
    model: Mapping[str, Any]
    num_ranks: int
    ranks_per_node: int
    num_micro_batches: int
    lengths: tuple[int, ...]
    labelled: float
    on_cpu: bool
    every_layer: bool


_OF_GPU_LIBRARIES = (
    *("liger_rope", "liger_rms_norm", "liger_layer_norm", "liger_glu_activation"),
    *("liger_fused_linear_cross_entropy", "cut_cross_entropy", "plugins"),
)
OPTIMIZERS = frozenset({"adamw_torch", "adamw_torch_fused", "muon", "sgd", "adagrad", "rmsprop"})
"""Those whose step is traced, all of torch's own but Adafactor, which reads numbers; the state of others is counted."""


def traced_keys(cfg: RunConfig, *, micro_batch_size: int, on_cpu: bool) -> dict[str, Any]:
    """The config's keys for a trace: kernels that run on a GPU only are replaced by torch's of the same memory."""
    keys = {key: value for key, value in cfg.flat().items() if key not in _OF_GPU_LIBRARIES}
    asked = cfg.model.attn_implementation or ""
    if not on_cpu and asked.startswith(("flash_attention", "kernels-community/", "flex_attention")):
        del keys["attn_implementation"]  # `model.varlen` holds as much
    if not on_cpu and cfg.precision.compute in ("auto", "float16"):
        keys |= {"bf16": True, "fp16": False}
    if cfg.optimizer.optimizer not in OPTIMIZERS:
        keys |= {"optimizer": "sgd"}
        keys.pop("optim_args", None)
    keys.pop("batch_size", None)
    return keys | {"micro_batch_size": micro_batch_size, "torch_compile": False}


def refuse(cfg: RunConfig, num_ranks: int, ranks_per_node: int) -> None:
    """Raise ConfigError, with the key, for what cannot be run on nothing."""
    kind, _, _ = strategy(cfg, num_ranks, ranks_per_node)
    parallel = cfg.parallel
    reasons = {
        "deepspeed: DeepSpeed's engine": kind == "zero",
        "fsdp_config.offload_params: memory of two devices": parallel.fsdp_settings.offload_params,
        "activation_offloading: memory of two devices": parallel.offloads_activations,
        f"load_in_{cfg.adapter.quantized_bits}bit: bitsandbytes' kernels": cfg.adapter.quantized_bits is not None,
        f"ddp_comm_hook: {parallel.ddp_comm_hook}": kind == "ddp" and parallel.ddp_comm_hook != "none",
    }
    for what, is_so in reasons.items():
        if is_so:
            raise ConfigError(f"{what} cannot be traced without values; `allranks plan` without --trace computes it")
