"""The arguments of transformers' Trainer, which all three trainers hand on.

Source: TrainingArguments of transformers 5; what it does without an argument is written out, where we do otherwise.
"""

from typing import Any

from allranks.config.foreign.finetune_arguments import KEYS, REFUSED, SWITCHES, WITHOUT_EFFECT
from allranks.importing.imported import Foreign, Imported, asks_for_nothing

DEFAULTS: dict[str, Any] = {
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_epochs": 3.0,
    "learning_rate": 5e-5,
    "lr_scheduler": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "optimizer": "adamw_torch_fused",
    "logging_steps": 500,
    "save_total_limit": 0,
}

# Taken by those who know them, or below.
_OWN = {
    *("model_name_or_path", "data_path", "eval_data_path", "model_max_length", "lora_weight_path", "push_to_hub"),
    *("fsdp", "fsdp_config", "deepspeed", "ddp_timeout", "resume_from_checkpoint", "gradient_checkpointing_kwargs"),
    *("activation_checkpointing_kwargs", "hub_model_id", "push_to_hub_model_id", "hub_strategy", "hub_token"),
    *("push_to_hub_token", "eval_strategy", "evaluation_strategy", "eval_steps", "eval_on_start"),
    *(
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "lr_scheduler_kwargs",
        "accelerator_config",
    ),
    *("fsdp_transformer_layer_cls_to_wrap", "fsdp_min_num_params", "lora_r", "lora_alpha", "lora_dropout"),
    *("lora_target_modules", "optim_args", "bf16", "fp16"),
}
_TEXTS = ("output_dir", "optim", "lr_scheduler_type", "save_strategy", "torch_compile_backend", "torch_compile_mode")
_VALUES = {"paged_adamw": "paged_adamw_32bit"}
_EVALUATION = ("eval_steps", "eval_on_start", "per_device_eval_batch_size", "eval_batch_size", "load_best_model_at_end")
_DAY_SECONDS = 86_400


def take_training_arguments(foreign: Foreign, imported: Imported, defaults: dict[str, Any]) -> None:
    """Carry over the arguments of the Trainer. The data must be known before: without evaluation data nothing is
    evaluated. `defaults` go before those of the Trainer."""
    has_evaluation = "test_datasets" in imported.flat or bool(imported.flat.get("val_set_size"))
    _evaluation(foreign, imported, has_evaluation)
    for theirs, ours in KEYS.items():
        if theirs in _OWN or not foreign.given(theirs):
            continue
        if theirs in SWITCHES:
            imported.set(ours, foreign.switch(theirs))
        elif theirs in _TEXTS:
            value = foreign.text(theirs)
            imported.set(ours, _VALUES.get(value or "", value))
        else:
            imported.set(ours, foreign.number(theirs))
    imported.set("lr_scheduler_kwargs", foreign.mapping("lr_scheduler_kwargs"))
    imported.set("optim_args", foreign.text("optim_args"))
    _precision(foreign, imported)
    _checkpointing(foreign, imported)
    _resume(foreign, imported)
    _strategies(foreign, imported)
    _trackers(foreign, imported)
    _kernels(foreign, imported)
    _without_effect(foreign, imported)
    flat = imported.flat
    if flat.get("warmup_steps") and flat.get("warmup_ratio"):
        del flat["warmup_ratio"]  # as there, where steps win
    if flat.get("warmup_ratio"):
        flat.pop("warmup_steps", None)
    for key, value in (DEFAULTS | defaults).items():
        if not (key == "warmup_steps" and flat.get("warmup_ratio")):
            imported.default(key, value)
    if flat.get("batch_size"):
        flat.pop("gradient_accumulation_steps", None)
    if flat.get("save_strategy", "steps") == "steps":
        imported.default("save_steps", 500)
    else:
        flat.pop("save_steps", None)
    if flat.get("max_steps", 0) <= 0:
        flat.pop("max_steps", None)


def _evaluation(foreign: Foreign, imported: Imported, has_evaluation: bool) -> None:
    strategy = foreign.text("eval_strategy") or foreign.text("evaluation_strategy")
    strategy = "no" if strategy in ("False", "false") else strategy
    if not has_evaluation or strategy == "no":
        for key in (*_EVALUATION, "metric_for_best_model", "greater_is_better"):
            foreign.take(key)
        if has_evaluation:
            imported.set("eval_strategy", "no")
        elif strategy not in (None, "no"):
            imported.lost.append(f"{foreign.source}: eval_strategy: {strategy}: there is no evaluation data")
        return
    imported.set("eval_strategy", strategy)
    steps = foreign.number("eval_steps")
    if strategy == "steps":
        imported.set("eval_steps", steps or foreign.values.get("logging_steps") or 500)
    imported.set("eval_on_start", foreign.switch("eval_on_start"))
    imported.set("load_best_model_at_end", foreign.switch("load_best_model_at_end"))
    if imported.flat.get("load_best_model_at_end"):
        imported.set("metric_for_best_model", foreign.text("metric_for_best_model"))
        imported.set("greater_is_better", foreign.switch("greater_is_better"))
    else:
        foreign.take("metric_for_best_model")
        foreign.take("greater_is_better")


def _precision(foreign: Foreign, imported: Imported) -> None:
    for key in ("bf16", "fp16"):
        if foreign.given(key):
            value = foreign.switch(key)
            if value or key == "bf16":
                imported.default(key, value)
    if imported.flat.get("fp16"):
        imported.flat.pop("bf16", None)


def _checkpointing(foreign: Foreign, imported: Imported) -> None:
    for key in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        options = foreign.mapping(key) or {}
        if options.get("use_reentrant"):
            imported.notes.append(
                f"{foreign.source}: {key}: use_reentrant: the other form is used; the result is equal"
            )


def _resume(foreign: Foreign, imported: Imported) -> None:
    resume = foreign.text("resume_from_checkpoint")
    if resume and resume.lower() == "true":
        imported.set("auto_resume_from_checkpoints", True)
    elif resume and resume.lower() != "false":
        place = foreign.source
        imported.lost.append(
            f"{place}: resume_from_checkpoint: {resume}: another trainer's checkpoint cannot be resumed"
        )
    timeout = foreign.number("ddp_timeout")
    if timeout and timeout < _DAY_SECONDS:
        imported.set("ddp_timeout", int(timeout))
    elif timeout:
        why = "left out: data is prepared before the ranks start, and a run that hangs must end"
        imported.notes.append(f"{foreign.source}: ddp_timeout: {timeout}: {why}")


def _strategies(foreign: Foreign, imported: Imported) -> None:
    deepspeed = foreign.take("deepspeed")
    if isinstance(deepspeed, dict):
        imported.set("deepspeed", deepspeed)
    elif deepspeed:
        found = foreign.find(str(deepspeed))
        known = zero_by_name(str(deepspeed))
        if found and found.is_file():
            imported.set("deepspeed", str(found))
        elif known:
            imported.set("deepspeed", known)
        else:
            imported.lost.append(
                f"{foreign.source}: deepspeed: {deepspeed} does not exist; nothing is sharded without it"
            )
    words = [word for word in foreign.words("fsdp") if word.lower() not in ("false", "none")]
    options = foreign.mapping("fsdp_config") or {}
    if not words:
        return
    imported.set("fsdp_version", 2)
    imported.set(
        "fsdp_config.reshard_after_forward", "shard_grad_op" not in words and "hybrid_shard_zero2" not in words
    )
    if "offload" in words:
        imported.set("fsdp_config.offload_params", True)
    if any(word.startswith("hybrid") for word in words):
        imported.set("dp_shard_size", "node")
    layer = foreign.text("fsdp_transformer_layer_cls_to_wrap")
    layers = options.get("transformer_layer_cls_to_wrap") or options.get("fsdp_transformer_layer_cls_to_wrap") or layer
    imported.set("fsdp_config.transformer_layer_cls_to_wrap", ",".join(layers) if isinstance(layers, list) else layers)
    if options.get("activation_checkpointing") or options.get("fsdp_activation_checkpointing"):
        imported.set("gradient_checkpointing", True)


def zero_by_name(name: str) -> dict[str, Any] | None:
    """DeepSpeed's settings by the names of the files that trainers ship: zero2, ds_z3_offload_config.json, …"""
    digits = [character for character in name.rpartition("/")[2] if character.isdecimal()]
    plain = name.rpartition("/")[2].removesuffix(".json").removesuffix("_config")
    if not digits or not plain.startswith(("zero", "ds_z", "deepspeed_zero")):
        return None
    zero: dict[str, Any] = {"stage": int(digits[0])}
    if plain.endswith("offload"):
        zero["offload_optimizer"] = {"device": "cpu"}
        if digits[0] == "3":
            zero["offload_param"] = {"device": "cpu"}
    return {"zero_optimization": zero}


def _trackers(foreign: Foreign, imported: Imported) -> None:
    run_name, project = foreign.text("run_name"), foreign.text("project")
    for tracker in foreign.words("report_to"):
        if tracker in ("tensorboard", "wandb", "mlflow", "trackio"):
            imported.set(f"use_{tracker}", True)
            if tracker != "tensorboard":
                imported.set(f"{tracker}_{'run_' if tracker != 'wandb' else ''}name", run_name)
            if tracker == "trackio":
                imported.set("trackio_project_name", project)
        elif tracker != "none":
            imported.lost.append(f"{foreign.source}: report_to: {tracker} is not supported")


def _kernels(foreign: Foreign, imported: Imported) -> None:
    if foreign.switch("use_liger_kernel"):
        for key in ("rope", "rms_norm", "glu_activation", "fused_linear_cross_entropy"):
            imported.set(f"liger_{key}", True)


def _without_effect(foreign: Foreign, imported: Imported) -> None:
    for key in (
        "push_to_hub",
        "hub_model_id",
        "push_to_hub_model_id",
        "hub_strategy",
        "hub_token",
        "push_to_hub_token",
    ):
        if not asks_for_nothing(foreign.take(key)) and key.endswith("push_to_hub"):
            imported.lost.append(f"{foreign.source}: {key}: nothing is pushed; `allranks export` writes the files")
    for key in WITHOUT_EFFECT:
        foreign.take(key)
    for key, why in REFUSED.items():
        label, value = foreign.label(key), foreign.take(key)
        if not asks_for_nothing(value):
            imported.lost.append(f"{label}: {value}: {why}")
    foreign.take("logging_strategy")
