"""The config of a rehearsal: the user's own, but for what a CPU cannot do and what would take long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allranks.config import RunConfig
from allranks.config.sections.data import DatasetSpec
from allranks.config.sections.deepspeed import BATCH_KEYS
from allranks.data.splits import parse_split
from allranks.errors import DataError

NUM_RECORDS = 512
"""Of each data set: enough for some blocks of any length, prepared in a second."""
LONGEST_BLOCK = 2048
NUM_STEPS = 2
_TRACKERS = ("use_tensorboard", "use_wandb", "use_mlflow", "use_trackio")
_NUMBERED_LAYER = re.compile(r"(layers|h|blocks)(\\?\.|\\.)[\[(]?\d")


@dataclass(frozen=True)
class RehearsalConfig:
    """`flat`: the keys of the rehearsal; `replaced`: what is not as the user wrote it, and why, a text each."""

    flat: Mapping[str, Any]
    replaced: tuple[str, ...]


def rehearsal_config(cfg: RunConfig, model: Path, folder: Path, *, world_size: int) -> RehearsalConfig:
    """What is rehearsed of `cfg` with the small `model` on `world_size` ranks of a CPU, all below `folder`."""
    flat = cfg.flat()
    told: list[str] = []

    def put(key: str, value: Any, why: str) -> None:
        """Replace a key that has another value; None takes it out."""
        if (had := flat.get(key)) == value:
            return
        if value is None:
            flat.pop(key)
        else:
            flat[key] = value
        told.append(f"{key}: {'not set' if had is None else had} -> {'not set' if value is None else value} ({why})")

    _of_gpus(cfg, put)
    _of_model(cfg, flat, put)
    _of_size(cfg, put, world_size)
    _of_strategy(cfg, flat, put, world_size)
    told += _bounded_data(flat)
    own: dict[str, Any] = {"base_model": str(model), "dataset_prepared_path": str(folder / "prepared")}
    own |= {"output_dir": str(folder / "run"), "save_strategy": "steps", "save_steps": NUM_STEPS, "logging_steps": 1}
    own |= {"max_steps": NUM_STEPS, "eval_strategy": "no", "auto_resume_from_checkpoints": False}
    own |= {"load_best_model_at_end": False, "eval_on_start": False, "warmup_steps": 1, "use_ray": False}
    own |= dict.fromkeys(_TRACKERS, False)
    gone: tuple[str, ...] = ("base_model_config", "overrides_of_model_config", "tokenizer_config", "revision_of_model")
    gone += ("saves_per_epoch", "resume_from_checkpoint", "eval_steps", "evals_per_epoch", "warmup_ratio")
    gone += ("early_stopping_patience", "profiler_steps", "loss_watchdog_threshold", "preflight")
    kept = {key: value for key, value in flat.items() if key not in gone}
    return RehearsalConfig(kept | own, tuple(told))


def _of_gpus(cfg: RunConfig, put: Any) -> None:
    """What only a GPU can do (`model.needs_gpu` refuses it)."""
    attention = cfg.model.attn_implementation or ""
    if attention.startswith(("flash_attention", "kernels-community/")) or attention == "flex_attention":
        put("attn_implementation", None, "runs on GPUs only; sdpa takes its place")
    why = "Liger's kernels run on GPUs only"
    for part, wanted in cfg.kernels.liger_modules.items():
        if wanted:
            put(f"liger_{part}", False, why)
    if cfg.kernels.liger_fused_linear_cross_entropy:
        put("liger_fused_linear_cross_entropy", False, why)
    if cfg.kernels.cut_cross_entropy:
        put("cut_cross_entropy", False, "runs on GPUs only; the loss is made in chunks")
    if cfg.kernels.plugins:
        put("plugins", None, "their kernels run on GPUs only")
    optimizer = cfg.optimizer.optimizer
    if optimizer.startswith("paged_") or any(word in optimizer for word in ("ademamix", "8bit", "4bit", "fp8", "bnb")):
        put("optimizer", "adamw_torch_fused", "small and paged state is a GPU's")
        put("optim_args", None, "it was the other optimizer's")
    if cfg.precision.compute == "float16":
        for key in ("fp16", "float16"):
            put(key, None, "a CPU does not compute in float16")
        put("bf16", False, "float32 takes its place")
    elif cfg.precision.compute == "bfloat16":
        for key in ("bf16", "bfloat16"):
            if cfg.flat().get(key) is not None:
                put(key, False if key == "bf16" else None, "a CPU is slow in it; float32 takes its place")
        put("bf16", False, "float32 takes its place")
    put("tf32", None, "a GPU's")
    if cfg.parallel.torch_compile:
        put("torch_compile", False, "compiling takes longer than the rehearsal")
    for key in ("torch_compile_backend", "torch_compile_mode"):
        put(key, None, "nothing is compiled")


def _of_model(cfg: RunConfig, flat: Mapping[str, Any], put: Any) -> None:
    """What belongs to the sizes and the stored weights of the large model."""
    put("lora_model_dir", None, "that adapter has the large model's sizes; a new one is trained")
    put("peft_layers_to_transform", None, "the small model has fewer layers")
    for key in ("model_quantization_config", "model_quantization_config_kwargs"):
        put(key, None, "the small model's weights are stored as they are")
    patterns = cfg.optimizer.unfrozen_parameters or []
    if left := [one for one in patterns if not _NUMBERED_LAYER.search(one)]:
        put("unfrozen_parameters", left, "layers of these numbers are not in the small model")
    elif patterns:
        put("unfrozen_parameters", [r"layers\.1\."], "layers of these numbers are not in the small model")


def _of_size(cfg: RunConfig, put: Any, world_size: int) -> None:
    """Less of the same: fewer blocks a step, and none that takes minutes."""
    why = "a CPU's time"
    if cfg.data.sequence_len > LONGEST_BLOCK:
        put("sequence_len", LONGEST_BLOCK, why)
        if cfg.data.excess_length_strategy != "truncate":
            put("excess_length_strategy", "truncate", "so that long records take part all the same")
        if (cfg.data.eval_sequence_len or 0) > LONGEST_BLOCK:
            put("eval_sequence_len", LONGEST_BLOCK, why)
    micro, steps = min(cfg.optimizer.micro_batch_size, 2), cfg.optimizer.gradient_accumulation_steps
    put("micro_batch_size", micro, why)
    if cfg.optimizer.batch_size is None:
        put("gradient_accumulation_steps", min(steps, 2), why)
    else:
        put("batch_size", min(cfg.optimizer.batch_size, 2 * micro * world_size), why)


def _of_strategy(cfg: RunConfig, flat: Mapping[str, Any], put: Any, world_size: int) -> None:
    """Sizes of the mesh that only fit the real number of ranks; batch sizes that DeepSpeed's settings repeat."""
    replicas, shards = cfg.parallel.dp_replicate_size, cfg.parallel.dp_shard_size
    if isinstance(shards, int) or replicas is not None:
        whole = (replicas or 1) * (shards if isinstance(shards, int) else 1)
        if whole != world_size:
            why = f"{world_size} ranks here"
            if isinstance(shards, int) and (replicas or 1) > 1 and world_size % 2 == 0 and world_size > 2:
                put("dp_replicate_size", 2, why)
                put("dp_shard_size", world_size // 2, why)
            else:
                put("dp_replicate_size", None, why)
                put("dp_shard_size", None, why)
                if isinstance(shards, int) and shards > 1 and not (cfg.parallel.fsdp or cfg.parallel.fsdp_config):
                    put("fsdp_version", 2, "over all ranks, whatever their number")
    if settings := cfg.deepspeed.settings:
        made = {key: value for key, value in settings.items() if key not in BATCH_KEYS and key not in _FORMATS}
        if zero := dict(made.get("zero_optimization") or {}):
            for key in ("offload_optimizer", "offload_param"):
                if (zero.get(key) or {}).get("device") == "nvme":
                    zero[key] = {"device": "cpu"}
            part = zero.get("zero_hpz_partition_size")
            if part and world_size % part:
                zero.pop("zero_hpz_partition_size")
            made["zero_optimization"] = zero
        if made != settings:
            gone = [key for key in settings if made.get(key) != settings[key]]
            put("deepspeed", made, f"{', '.join(gone)}: of a CPU and {world_size} ranks")


_FORMATS = ("fp16", "bf16", "amp", "optimizer", "aio")


def _bounded_data(flat: dict[str, Any]) -> list[str]:
    """Take the first records of each data set in `flat`; what was said of it."""
    told = []
    for key in ("datasets", "test_datasets"):
        bounded = []
        for spec in flat.get(key) or ():
            default = DatasetSpec.model_fields["split"].default
            bounded.append({**spec, "split": bounded_split(spec.get("split") or default)})
            told.append(f"{key}: {spec['path']}: {bounded[-1]['split']} (a part of it)")
        if bounded:
            flat[key] = bounded
    return told


def bounded_split(split: str) -> str:
    """The split with at most NUM_RECORDS records, where that can be said without counting them."""
    try:
        found = parse_split(split)
    except DataError:
        return split  # the data's own message is better
    start, stop = found.start, found.stop
    if "%" in start + stop or start.startswith("-") or stop.startswith("-"):
        return split
    end = int(start or 0) + NUM_RECORDS
    return f"{found.name}[{start}:{min(end, int(stop)) if stop else end}]"
