"""ms-swift: the arguments of `swift sft` and `swift pt`, from a shell script, JSON or YAML (ms-swift 4)."""

import re
from typing import Any

from allranks.errors import ConfigError
from allranks.importing.imported import Foreign, Imported, refused
from allranks.importing.lora import set_quantized, set_targets
from allranks.importing.training_arguments import take_training_arguments

_DEFAULTS: dict[str, Any] = {
    "micro_batch_size": 1,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "lr_scheduler": "cosine",
    "logging_steps": 5,
    "gradient_checkpointing": True,
}
_GLOBAL_BATCH = 16  # what it accumulates to where nothing is said
_REFUSED = {
    "use_galore": "GaLore is not supported",
    "lisa_activated_layers": "LISA is not supported",
    "enable_dft_loss": "the loss is plain cross entropy here",
    "freeze_parameters": "parameters cannot be frozen by name; `unfrozen_parameters` names what is trained",
    "freeze_parameters_ratio": "parameters cannot be frozen by share; `unfrozen_parameters` names what is trained",
    "sequence_parallel_size": "sequence parallelism is not supported",
}
# Nothing is lost of these at the value that is their default there.
_NEUTRAL = {
    "dataset_shuffle": "true",
    "train_dataloader_shuffle": "true",
    "freeze_llm": "false",
    "load_args": "false",
    "interleave_prob": "",
    "external_plugins": "",
    "add_non_thinking_prefix": "true",
    "agent_template": "",
    "model_kwargs": "",
}
_WITHOUT_EFFECT = (
    *("load_from_cache_file", "lazy_tokenize", "use_hf", "add_version", "create_checkpoint_symlink", "ddp_backend"),
    *("check_model", "strict", "packing_num_proc", "val_dataset_shuffle", "freeze_vit"),
    *("freeze_aligner", "streaming", "shuffle_buffer_size", "padding_free", "padding_side"),
    *("ignore_args_error", "safe_serialization", "max_shard_size", "acc_strategy", "tuner_backend"),
    *("model_type", "task_type", "template_backend", "device_map", "bnb_4bit_quant_storage", "remove_unused"),
)
_ATTENTION = {
    **dict.fromkeys(("flash_attn", "flash_attention_2"), "flash_attention_2"),
    **dict.fromkeys(("flash_attention_3",), "flash_attention_3"),
    **dict.fromkeys(("sdpa", "eager"), None),
}
_LENGTHS = {"delete": "drop", "left": "truncate", "right": "truncate", "split": "drop"}


def read_ms_swift(foreign: Foreign) -> Imported:
    """The config that ms-swift's arguments stand for."""
    imported = Imported(foreign.tool, foreign.source)
    refused(foreign, _REFUSED)
    model = foreign.text("model") or foreign.text("model_id_or_path")
    if model is None:
        raise ConfigError(f"{foreign.source}: model is missing; give it after --")
    imported.set("base_model", model)
    imported.set("revision_of_model", foreign.text("model_revision"))
    attention = foreign.text("attn_impl") or foreign.text("attn_implementation")
    imported.set("attn_implementation", _ATTENTION.get(attention or "") or attention)
    chats = foreign.switch("use_chat_template")
    pretrains = foreign.command == "pt" if chats is None else not chats
    _lengths(foreign, imported)
    _data(foreign, imported, pretrains)
    full = _adapter(foreign, imported)
    dtype = foreign.text("torch_dtype") or foreign.text("dtype")
    foreign.pass_over(_WITHOUT_EFFECT, _NEUTRAL, imported)
    if not foreign.given("gradient_accumulation_steps"):
        imported.set("batch_size", _GLOBAL_BATCH)
        foreign.take("gradient_accumulation_steps")
    if foreign.text("fsdp") == "fsdp2":
        imported.set("fsdp_version", 2)
    take_training_arguments(foreign, imported, {**_DEFAULTS, "learning_rate": 1e-5 if full else 1e-4})
    _precision(foreign, imported, dtype, full)
    return imported


def _lengths(foreign: Foreign, imported: Imported) -> None:
    length = foreign.whole("packing_length") or foreign.whole("max_length")
    foreign.take("max_length")
    if length:
        imported.set("sequence_len", length)
    else:
        imported.set("sequence_len", 2048)
        imported.notes.append(f"{foreign.source}: max_length is not given: there it is the model's own, here 2048")
    imported.set("sample_packing", foreign.switch("packing") or None)
    strategy = foreign.text("truncation_strategy") or "delete"
    imported.set("excess_length_strategy", _LENGTHS.get(strategy, "drop"))
    if strategy in ("left", "split"):
        imported.lost.append(f"{foreign.source}: truncation_strategy: {strategy}: {_LENGTHS[strategy]} is used")
    imported.set("dataset_num_proc", foreign.whole("dataset_num_proc"))
    imported.set("tokens", foreign.words("new_special_tokens") or None)


def _data(foreign: Foreign, imported: Imported, pretrains: bool) -> None:
    names, tests = _names(foreign, "dataset"), _names(foreign, "val_dataset")
    if not names:
        raise ConfigError(f"{foreign.source}: dataset is missing: nothing says what to train on")
    columns = foreign.mapping("columns")
    if columns:
        imported.lost.append(
            f"{foreign.source}: columns: {columns}: name the fields in `datasets`, or rename the columns"
        )
    imported.set("datasets", [_spec(foreign, imported, name, pretrains) for name in names])
    if tests:
        imported.set("test_datasets", [_spec(foreign, imported, name, pretrains) for name in tests])
    share = foreign.number("split_dataset_ratio")
    if share and not tests:
        imported.set("val_set_size", share)
    template = foreign.text("template")
    if not pretrains:
        same = "chatml" if template == "chatml" else "tokenizer_default"
        imported.set("chat_template", same)
        if template and same == "tokenizer_default":
            why = "the template of the model's own tokenizer is used"
            imported.notes.append(f"{foreign.source}: template: {template}: {why}")
    imported.set("default_system_message", (foreign.text("system") or "").replace("\\n", "\n") or None)
    thinking = foreign.switch("enable_thinking")
    if thinking is not None:
        imported.set("chat_template_kwargs.enable_thinking", thinking)
    scale = foreign.text("loss_scale") or ("all" if pretrains else "default")
    if scale == "all" and not pretrains:
        imported.set("train_on_inputs", True)
    elif scale not in ("default", "all"):
        imported.lost.append(f"{foreign.source}: loss_scale: {scale}: every answer counts alike")
    for key in ("model_name", "model_author"):
        if foreign.given(key):
            foreign.take(key)
            if any("self-cognition" in name for name in names):
                imported.lost.append(f"{foreign.source}: {key}: put the names into the data of self-cognition yourself")


def _names(foreign: Foreign, key: str) -> list[str]:
    """Whole words: a name may hold a comma."""
    value = foreign.take(key)
    return [] if value is None else [str(name) for name in (value if isinstance(value, list) else [value])]


def _spec(foreign: Foreign, imported: Imported, written: str, pretrains: bool) -> dict[str, Any]:
    """`[HF::|MS::]NAME[:SUBSET][#COUNT]`, or the path of a file."""
    name, _, count = written.partition("#")
    name = re.sub(r"^(HF|MS|hf|ms)::", "", name)
    local = foreign.find(name)
    name, _, subset = (name, "", "") if local else name.partition(":")
    spec: dict[str, Any] = {
        "path": str(local) if local else name,
        "type": "completion" if pretrains else "chat_template",
    }
    if not pretrains and "alpaca" in name.lower():
        spec["type"] = "alpaca:tokenizer_default"
    if subset:
        spec["name"] = subset
    if count:
        spec["split"] = f"train[:{count}]"
        imported.notes.append(f"{foreign.source}: {written}: the first {count} records, not a draw of {count}")
    if not local:
        why = "looked for on the Hugging Face Hub; set `type` to what its records are (chat_template, alpaca:…)"
        imported.notes.append(f"{foreign.source}: {written}: {why}")
    elif not pretrains:
        from allranks.importing.trl import columns_of

        if {"instruction", "output"} <= columns_of(str(local)):
            spec["type"] = "alpaca:tokenizer_default"
    return spec


def _adapter(foreign: Foreign, imported: Imported) -> bool:
    """Whether the whole model is trained."""
    kind = foreign.text("tuner_type") or foreign.text("train_type") or foreign.text("sft_type") or "lora"
    for key in ("train_type", "sft_type"):
        foreign.take(key)
    rank, alpha = foreign.whole("lora_rank") or 8, foreign.number("lora_alpha") or 32
    dropout = foreign.number("lora_dropout")
    targets, regex = foreign.words("target_modules"), foreign.text("target_regex")
    whole, start = foreign.words("modules_to_save"), foreign.words("adapters")
    dora, rslora = foreign.switch("use_dora"), foreign.switch("use_rslora")
    ratio, parameters = foreign.number("lorap_lr_ratio"), foreign.words("target_parameters")
    method, bits = foreign.text("quant_method"), foreign.whole("quant_bits")
    double, number_kind = foreign.switch("bnb_4bit_use_double_quant"), foreign.text("bnb_4bit_quant_type")
    foreign.take("bnb_4bit_compute_dtype")
    start_values = foreign.text("init_weights")
    if foreign.text("lora_bias") == "all":
        raise ConfigError(f"{foreign.source}: lora_bias: all: biases are not trained; nothing was imported")
    foreign.take("lora_dtype")
    if kind == "full":
        return True
    if kind != "lora":
        raise ConfigError(f"{foreign.source}: tuner_type: {kind}: only lora and full; nothing was imported")
    if bits and method not in (None, "bnb"):
        raise ConfigError(f"{foreign.source}: quant_method: {method}: only bnb; nothing was imported")
    imported.set("adapter", "lora")
    imported.set("lora_r", rank)
    imported.set("lora_alpha", alpha)
    imported.set("lora_dropout", 0.05 if dropout is None else dropout)
    set_targets(imported, [regex] if regex else targets or ["all-linear"])
    imported.set("lora_target_parameters", parameters or None)
    imported.set("lora_modules_to_save", whole or None)
    imported.set("lora_model_dir", start[0] if start else None)
    imported.set("peft_use_dora", dora or None)
    imported.set("peft_use_rslora", rslora or None)
    imported.set("loraplus_lr_ratio", ratio)
    if start_values not in (None, "true", "True"):
        imported.set("peft_init_lora_weights", start_values)
    set_quantized(imported, bits, double is not False, number_kind)
    return False


def _precision(foreign: Foreign, imported: Imported, dtype: str | None, full: bool) -> None:
    """Weights are loaded in `torch_dtype`; a whole model keeps them so, unless something shards it."""
    flat = imported.flat
    sharded = "deepspeed" in flat or "fsdp_version" in flat
    if flat.get("fp16"):
        return
    if dtype == "float32":
        imported.default("bf16", False)
    elif dtype == "float16":
        flat.pop("bf16", None)
        flat["fp16"] = True
    elif flat.get("bf16") is not False:
        flat["bf16"] = "full" if full and not sharded else True
        if dtype is None:
            imported.notes.append(f"{foreign.source}: torch_dtype is not given: there the model's own, here bfloat16")
