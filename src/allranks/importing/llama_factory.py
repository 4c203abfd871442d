"""LLaMA-Factory: the YAML, JSON or arguments of `llamafactory-cli train`, with its dataset_info.json."""

import json
from pathlib import Path
from typing import Any

from allranks.errors import ConfigError
from allranks.importing.imported import Foreign, Imported, refused
from allranks.importing.lora import set_quantized, set_targets
from allranks.importing.training_arguments import take_training_arguments

_SAME_TEMPLATES = {"chatml": "chatml", "alpaca": "alpaca", "llama3": "llama3", "gemma": "gemma"}
_DEFAULTS = {"optimizer": "adamw_torch_fused", "gradient_checkpointing": True}
_REFUSED = {
    "use_galore": "GaLore is not supported",
    "use_apollo": "APOLLO is not supported",
    "use_badam": "BAdam is not supported",
    "use_llama_pro": "LLaMA Pro is not supported",
    "use_dft_loss": "the loss is plain cross entropy here",
    "use_asft_loss": "the loss is plain cross entropy here",
    "use_eaft_loss": "the loss is plain cross entropy here",
    "mixture_of_depths": "mixture of depths is not supported",
    "shift_attn": "S2-Attn is not supported",
    "pissa_init": "PiSSA is not supported",
    "train_from_scratch": "only pretrained models are fine-tuned",
    "use_mca": "Megatron is not supported",
    "use_megatron_bridge": "Megatron is not supported",
}
# Nothing is lost of these at the value that is their default there.
_NEUTRAL = {
    "use_unsloth": "false",
    "use_unsloth_gc": "false",
    "upcast_layernorm": "false",
    "resize_vocab": "false",
    "create_new_adapter": "false",
    "pissa_convert": "false",
    "pissa_iter": "16",
    "ignore_pad_token_for_loss": "true",
    "lora_bias": "none",
    "tokenized_path": "",
}
_WITHOUT_EFFECT = (
    *("overwrite_cache", "preprocessing_batch_size", "plot_loss", "use_fast_tokenizer", "low_cpu_mem_usage"),
    *("print_param_status", "include_effective_tokens_per_second", "data_shared_file_system"),
    *("use_reentrant_gc", "use_v1_kernels"),
    *("infer_backend", "hf_hub_token", "ms_hub_token", "om_hub_token"),
    *("freeze_vision_tower", "freeze_multi_modal_projector", "streaming", "buffer_size", "use_kv_cache"),
    *("image_max_pixels", "image_min_pixels", "video_max_pixels", "media_dir", "ray_num_workers", "ray_init_kwargs"),
    *("predict_with_generate", "compute_accuracy"),
)
_ATTENTION = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "sdpa": "sdpa", "disabled": "eager"}


def read_llama_factory(foreign: Foreign) -> Imported:
    """The config that LLaMA-Factory's arguments stand for."""
    imported = Imported(foreign.tool, foreign.source)
    refused(foreign, _REFUSED)
    stage = foreign.text("stage") or "sft"
    if stage not in ("sft", "pt"):
        raise ConfigError(f"{foreign.source}: stage: {stage}: only sft and pt are trained here; nothing was imported")
    model = foreign.text("model_name_or_path")
    if model is None:
        raise ConfigError(f"{foreign.source}: model_name_or_path is missing; give it after --")
    imported.set("base_model", model)
    revision = foreign.text("model_revision")
    imported.set("revision_of_model", None if revision == "main" else revision)
    imported.set("trust_remote_code", foreign.switch("trust_remote_code") or None)
    imported.set("attn_implementation", _ATTENTION.get(foreign.text("flash_attn") or ""))
    _lengths(foreign, imported, stage)
    _data(foreign, imported, stage)
    _adapter(foreign, imported)
    if foreign.switch("enable_liger_kernel"):
        foreign.values["use_liger_kernel"] = True
    if foreign.switch("disable_gradient_checkpointing"):
        imported.set("gradient_checkpointing", False)
    if foreign.switch("use_muon"):
        imported.set("optimizer", "muon")
    pure = foreign.switch("pure_bf16")
    imported.set("early_stopping_patience", foreign.whole("early_stopping_steps"))
    if foreign.switch("disable_shuffling"):
        imported.set("curriculum_sampling", True)
    foreign.pass_over(_WITHOUT_EFFECT, _NEUTRAL, imported)
    take_training_arguments(foreign, imported, _DEFAULTS)
    if pure:
        imported.flat["bf16"] = "full"
    if not {"bf16", "fp16"} & imported.flat.keys():
        imported.notes.append(f"{foreign.source}: neither bf16 nor fp16: bfloat16 is used where the device has it")
    return imported


def _lengths(foreign: Foreign, imported: Imported, stage: str) -> None:
    imported.set("sequence_len", foreign.whole("cutoff_len") or 2048)
    packing, neat = foreign.switch("packing"), foreign.switch("neat_packing")
    packed = bool(packing or neat or (packing is None and stage == "pt"))
    imported.set("sample_packing", packed or None)
    # There, a packed sample that is too long is dropped, and one that stands alone is cut.
    if stage == "sft":  # other texts are laid end to end, and long ones come in pieces
        imported.set("excess_length_strategy", "drop" if packed else "truncate")
    if packed and not neat and stage == "sft":
        why = "samples of a block do not see each other here, as with neat_packing"
        imported.notes.append(f"{foreign.source}: packing: {why}")
    imported.set("dataset_num_proc", foreign.whole("preprocessing_num_workers"))
    imported.set("train_on_inputs", foreign.switch("train_on_prompt") or None)
    if foreign.switch("mask_history"):
        imported.lost.append(
            f"{foreign.source}: mask_history: all answers of a conversation are trained, not the last only"
        )
    tokens = [*foreign.words("add_tokens"), *foreign.words("new_special_tokens"), *foreign.words("add_special_tokens")]
    imported.set("tokens", tokens or None)


def _data(foreign: Foreign, imported: Imported, stage: str) -> None:
    names, evaluated = foreign.words("dataset"), foreign.words("eval_dataset")
    if not names:
        raise ConfigError(f"{foreign.source}: dataset is missing: nothing says what to train on")
    folder = foreign.text("dataset_dir") or "data"
    samples = foreign.whole("max_samples")
    template = foreign.text("template")
    chat = _SAME_TEMPLATES.get(template or "", "tokenizer_default")
    if stage == "sft":
        imported.set("chat_template", chat)
        if template and chat == "tokenizer_default":
            imported.notes.append(
                f"{foreign.source}: template: {template}: the template of the model's own tokenizer is used"
            )
    imported.set("default_system_message", foreign.text("default_system"))
    thinking = foreign.switch("enable_thinking")
    if thinking is not None and stage == "sft":
        imported.set("chat_template_kwargs.enable_thinking", thinking)
    strategy = foreign.text("mix_strategy")
    foreign.take("interleave_probs")
    if strategy not in (None, "concat"):
        imported.lost.append(f"{foreign.source}: mix_strategy: {strategy}: all data is taken, once an epoch")
    info, where = _dataset_info(foreign, folder)
    specs = [_spec(foreign, imported, name, info, where, samples, chat, stage) for name in names]
    imported.set("datasets", specs)
    if chat == "tokenizer_default" and all(spec["type"] != "chat_template" for spec in specs):
        imported.flat.pop("chat_template", None)  # each names the template itself
    if evaluated:
        tests = [_spec(foreign, imported, name, info, where, samples, chat, stage) for name in evaluated]
        imported.set("test_datasets", tests)
    share = foreign.number("val_size")
    if share:
        imported.set("val_set_size", int(share) if share >= 1 else share)


def _dataset_info(foreign: Foreign, folder: str) -> tuple[dict[str, Any], Path]:
    found = foreign.find(f"{folder}/dataset_info.json")
    if found is None:
        return {}, Path(folder)
    try:
        info = json.loads(found.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{found}: not valid JSON: {error}") from None
    if not isinstance(info, dict):
        raise ConfigError(f"{found}: expected a JSON object")
    return info, found.parent


def _spec(
    foreign: Foreign,
    imported: Imported,
    name: str,
    info: dict[str, Any],
    where: Path,
    samples: int | None,
    chat: str,
    stage: str,
) -> dict[str, Any]:
    entry = info.get(name)
    place = f"{foreign.source}: dataset {name}"
    if entry is None:
        imported.lost.append(
            f"{place}: not in a dataset_info.json (looked for {where}/dataset_info.json): mend its path"
        )
        entry = {"file_name": f"{name}.json"}
    if entry.get("ranking"):
        raise ConfigError(f"{place}: it holds rankings, for preference training; nothing was imported")
    if "hf_hub_url" in entry:
        spec: dict[str, Any] = {"path": entry["hf_hub_url"]}
    elif "file_name" in entry:
        spec = {"path": str(where / entry["file_name"])}
    else:
        spec = {"path": entry.get("ms_hub_url") or entry.get("om_hub_url") or name}
        imported.notes.append(f"{place}: it is not on the Hugging Face Hub by its entry; check its path")
    if entry.get("subset"):
        spec["name"] = entry["subset"]
    split, limit = entry.get("split", "train"), samples or entry.get("num_samples")
    if limit or split != "train":
        spec["split"] = f"{split}[:{limit}]" if limit else split
    columns = entry.get("columns") or {}
    for kind in ("images", "videos", "audios"):
        if kind in columns:
            raise ConfigError(f"{place}: it holds {kind}, and only text is trained; nothing was imported")
    if stage == "pt":
        field = columns.get("prompt", "text")
        return {**spec, "type": "completion", **({} if field == "text" else {"field": field})}
    if entry.get("formatting", "alpaca") == "alpaca":
        return {**spec, **_alpaca(imported, place, columns, chat)}
    return {**spec, **_conversations(entry, columns)}


def _alpaca(imported: Imported, place: str, columns: dict[str, str], chat: str) -> dict[str, Any]:
    usual = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    renamed = {theirs: name for theirs, name in columns.items() if name != usual.get(theirs, theirs)}
    if "history" in columns:
        imported.lost.append(f"{place}: history: earlier turns are not read; write the data as conversations")
        renamed.pop("history", None)
    for theirs, name in renamed.items():
        imported.lost.append(f"{place}: {theirs}: {name}: rename the column to {usual.get(theirs, theirs)}")
    base = "alpaca_w_system" if "system" in columns else "alpaca"
    return {"type": base if chat == "alpaca" else f"{base}:{chat}"}


def _conversations(entry: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    tags = entry.get("tags") or {}
    openai = entry.get("formatting") == "openai"
    spec: dict[str, Any] = {
        "type": "chat_template",
        "field_messages": columns.get("messages", "messages" if openai else "conversations"),
        "message_property_mappings": {
            "role": tags.get("role_tag", "role" if openai else "from"),
            "content": tags.get("content_tag", "content" if openai else "value"),
        },
    }
    if "tools" in columns:
        spec["field_tools"] = columns["tools"]
    if "system" in columns:
        spec["field_system"] = columns["system"]
    ours = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "system_tag": "system"}
    known = {"user": ("user", "human"), "assistant": ("assistant", "gpt"), "tool": ("tool", "observation")}
    roles = {role: [tags[tag]] for tag, role in ours.items() if tags.get(tag, role) not in known.get(role, (role,))}
    if roles:
        spec["roles"] = roles
    return spec


def _adapter(foreign: Foreign, imported: Imported) -> None:
    kind = foreign.text("finetuning_type") or "lora"
    rank, alpha = foreign.whole("lora_rank") or 8, foreign.number("lora_alpha")
    dropout, targets = foreign.number("lora_dropout"), foreign.words("lora_target") or ["all"]
    whole, start = foreign.words("additional_target"), foreign.text("adapter_name_or_path")
    dora, rslora = foreign.switch("use_dora"), foreign.switch("use_rslora")
    ratio, embedding = foreign.number("loraplus_lr_ratio"), foreign.number("loraplus_lr_embedding")
    method, bits = foreign.text("quantization_method"), foreign.whole("quantization_bit")
    double, number_kind = foreign.switch("double_quantization"), foreign.text("quantization_type")
    foreign.take("quantization_device_map")
    if kind == "full":
        return
    if kind != "lora":
        raise ConfigError(f"{foreign.source}: finetuning_type: {kind}: only lora and full; nothing was imported")
    if bits and method not in (None, "bnb", "bitsandbytes"):
        raise ConfigError(f"{foreign.source}: quantization_method: {method}: only bnb; nothing was imported")
    imported.set("adapter", "lora")
    imported.set("lora_r", rank)
    imported.set("lora_alpha", alpha or 2 * rank)
    imported.set("lora_dropout", dropout or 0.0)
    set_targets(imported, targets)
    imported.set("lora_modules_to_save", whole or None)
    imported.set("lora_model_dir", start)
    imported.set("peft_use_dora", dora or None)
    imported.set("peft_use_rslora", rslora or None)
    imported.set("loraplus_lr_ratio", ratio)
    if ratio:
        imported.set("loraplus_lr_embedding", embedding)
    set_quantized(imported, bits, double is not False, number_kind)
