"""The arguments of Qwen's fine-tuning scripts (finetune_ds.sh, finetune_lora_ds.sh, finetune_qlora_ds.sh) as a config.

Source of every value: those scripts and the finetune.py that they start, github.com/QwenLM/Qwen.
"""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from allranks.config.rules import EXCLUSIVE
from allranks.config.run import RunConfig
from allranks.errors import UsageError

METHODS = ("full", "lora", "qlora")

_ALL = {
    "bf16": True,
    "gradient_checkpointing": True,
    "sequence_len": 512,
    # finetune.py cuts what is too long.
    "excess_length_strategy": "truncate",
    "num_epochs": 5.0,
    "eval_batch_size": 1,
    "optimizer": "adamw_torch",
    "adam_beta2": 0.95,
    "weight_decay": 0.1,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.01,
    "save_strategy": "steps",
    "save_steps": 1000,
    "save_total_limit": 10,
    "logging_steps": 1,
    "network": {"cuda_device_max_connections": 1},
}
_FULL = {
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "learning_rate": 1e-5,
}
_ADAPTER = {
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "learning_rate": 3e-4,
    "lora_r": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
}
_METHOD: dict[str, dict[str, Any]] = {
    "full": _FULL,
    "lora": {"adapter": "lora", **_ADAPTER},
    "qlora": {"adapter": "qlora", "load_in_4bit": True, **_ADAPTER},
}

_ZERO = {"full": 3, "lora": 2, "qlora": 2}
# Without DeepSpeed: what divides the same, and what an adapter's small gradients and state need no division by.
_NATIVE: dict[str, dict[str, Any]] = {"full": {"fsdp_version": 2}, "lora": {}, "qlora": {}}
# Any of them chooses how the ranks share the model.
_SHARDING = ("deepspeed", "fsdp", "fsdp_version", "fsdp_config", "dp_shard_size", "dp_replicate_size")

# The models from Qwen-1.8B to Qwen-72B have names of their own for their layers; all later ones call them alike.
_QWEN1 = re.compile(r"qwen-(1_8b|7b|14b|72b)(-|$)", re.IGNORECASE)
_QUANTIZED = re.compile(r"-((gptq-)?int[48]|awq)/?$", re.IGNORECASE)
_TARGETS_OF_QWEN1 = ["c_attn", "c_proj", "w1", "w2"]
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def zero(stage: int) -> dict[str, Any]:
    """DeepSpeed's settings as the scripts' ds_config_zero2.json and ds_config_zero3.json choose them.

    Batch, precision, clipping, optimizer and schedule, which are `auto` there, the config says.
    """
    common = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 2:
        sizes: dict[str, Any] = {"reduce_scatter": True, "reduce_bucket_size": 2e8, "allgather_bucket_size": 2e8}
    else:
        sizes = {"sub_group_size": 1e9, "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9}
        named = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
        sizes |= dict.fromkeys(named, "auto")
    return {"zero_optimization": {**common, **sizes}}


def qwen_config(
    method: str, model: str, data: str, given: Collection[str] = (), *, deepspeed: bool = False
) -> dict[str, Any]:
    """The flat config that a script stands for. `given` are the keys that the user sets: what they exclude is left out.

    `deepspeed`: whether the ranks share the model by ZeRO, as in the scripts, or by what PyTorch has for it.
    LoRA adapts all linear layers but the output layer, as the script does; that of a base model also trains embedding
    and output layer, which do not know the tokens of a chat yet.
    """
    flat = {
        "base_model": model,
        "datasets": [{"path": data, "type": "qwen"}],
        "output_dir": "output_qwen",
        **_METHOD[method],
        **_ALL,
    }
    if not any(key.partition(".")[0] in _SHARDING for key in given):
        flat |= {"deepspeed": zero(_ZERO[method])} if deepspeed else _NATIVE[method]
    if method != "full":
        flat["lora_target_modules"] = adapted_modules(model)
        if method == "lora" and (whole := modules_trained_whole(model)):
            flat["lora_modules_to_save"] = whole
    return {key: value for key, value in flat.items() if not _is_excluded(key, given)}


def adapted_modules(model: str) -> list[str]:
    """All linear layers but the output layer, by their names in this generation of models."""
    return list(_TARGETS_OF_QWEN1 if is_qwen1(model) else _TARGETS)


def modules_trained_whole(model: str) -> list[str] | None:
    """Embedding and output layer of a base model, by their names in this generation; None for a chat model."""
    return None if is_chat_model(model) else ["wte" if is_qwen1(model) else "embed_tokens", "lm_head"]


def why_trained_whole(model: str, modules: Sequence[str]) -> str:
    """What the user is told of a base model."""
    return (
        f"{model} is a base model by its name: it has never seen the tokens of a chat (<|im_start|>, <|im_end|>), so "
        f"{' and '.join(modules)} are trained too, as finetune.py does; --lora-modules-to-save null leaves them out"
    )


def refuse_with_zero3(model: str, cfg: RunConfig) -> None:
    """Raises UsageError for a base model's embedding and output layer under ZeRO-3, as finetune.py does."""
    whole = modules_trained_whole(model)
    if whole and cfg.deepspeed.stage == 3 and cfg.adapter.lora_modules_to_save == whole:
        raise UsageError(
            f"{model} is a base model by its name, and LoRA on a base model trains {' and '.join(whole)} too, which "
            "finetune.py refuses with ZeRO-3. Use ZeRO-2 (its ds_config_zero2.json), FSDP2 (--fsdp_version 2 in the "
            "place of --deepspeed) or a chat model; or train the adapter alone with --lora_modules_to_save null"
        )


def refuse_quantized(model: str) -> None:
    """Raises UsageError for the Hub id of a model in GPTQ or AWQ, as finetune_qlora_ds.sh takes it, with the one to
    take instead: before gigabytes are downloaded."""
    usual = _QUANTIZED.sub("", model)
    if usual != model and not Path(model).exists():
        raise UsageError(
            f"{model} holds weights in GPTQ or AWQ, which cannot be trained on here. Give {usual}: qlora quantizes it "
            "to 4 bits (NF4) while it is read, and needs no kernels of another library"
        )


def is_qwen1(model: str) -> bool:
    """Whether a folder or Hub id is a model of the first generation."""
    config = Path(model) / "config.json"
    if config.is_file():
        try:
            return bool(json.loads(config.read_text(encoding="utf-8")).get("model_type") == "qwen")
        except (OSError, ValueError, AttributeError):
            return False  # who loads the model will say what is wrong with it
    return _QWEN1.match(_last_part(model)) is not None


def is_chat_model(model: str) -> bool:
    """By its name, as in finetune.py; since Qwen3 it is the base models whose names say so."""
    name = _last_part(model).lower()
    if any(word in name for word in ("chat", "instruct", "thinking")):
        return True
    generation = re.match(r"qwen(\d+)", name)
    return generation is not None and int(generation[1]) >= 3 and "base" not in name


def _last_part(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2]


def _is_excluded(key: str, given: Collection[str]) -> bool:
    if "save_strategy" in given and key == "save_steps":
        return True
    others = {other for *pair, _ in EXCLUSIVE for other in pair if key in pair and other != key}
    return key not in given and not others.isdisjoint(given)
