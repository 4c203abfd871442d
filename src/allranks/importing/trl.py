"""TRL's `sft`: its YAML and its arguments (SFTConfig, ModelConfig, ScriptArguments of TRL 1.16)."""

from pathlib import Path
from typing import Any

from allranks.errors import ConfigError
from allranks.importing.imported import Foreign, Imported
from allranks.importing.lora import set_quantized, set_targets
from allranks.importing.training_arguments import take_training_arguments, zero_by_name

_PROMPT = {"field_instruction": "prompt", "field_output": "completion", "format": "{instruction}"}
_DEFAULTS = {"learning_rate": 2e-5, "logging_steps": 10, "gradient_checkpointing": True}
_LENGTHS = {"bfd": "truncate", "bfd_split": "drop", "bfd-requeue": "drop", "wrapped": "truncate"}
# Nothing is lost of these at the value that is their default there.
_NEUTRAL = {
    "shuffle_dataset": "false",
    "truncation_mode": "keep_start",
    "router_aux_loss_coef": "0.0",
    "dataset_kwargs": "{}",
}
_WITHOUT_EFFECT = (
    *("padding_free", "pad_to_multiple_of", "dataset_streaming"),
    *("ignore_bias_buffers", "lora_task_type", "bnb_4bit_quant_storage"),
    *("streaming", "use_cache", "env", "dataset_batch_size", "num_of_sequences"),
)


def read_trl(foreign: Foreign) -> Imported:
    """The config that TRL's arguments stand for."""
    imported = Imported(foreign.tool, foreign.source)
    model = foreign.text("model_name_or_path")
    if model is None:
        raise ConfigError(f"{foreign.source}: model_name_or_path is missing; give it after --")
    imported.set("base_model", model)
    imported.set("revision_of_model", foreign.text("model_revision"))
    imported.set("trust_remote_code", foreign.switch("trust_remote_code") or None)
    imported.set("attn_implementation", foreign.text("attn_implementation"))
    if foreign.text("loss_type") == "dft":
        raise ConfigError(
            f"{foreign.source}: loss_type: dft: the loss is plain cross entropy here; nothing was imported"
        )
    _lengths(foreign, imported)
    _data(foreign, imported)
    _adapter(foreign, imported)
    accelerate = foreign.text("accelerate_config")
    if accelerate and accelerate.startswith("fsdp"):
        imported.set("fsdp_version", 2)
    elif accelerate and (zero := zero_by_name(accelerate)):
        imported.set("deepspeed", zero)
    whole_bf16 = foreign.text("dtype") or foreign.text("torch_dtype")
    foreign.pass_over(_WITHOUT_EFFECT, _NEUTRAL, imported)
    imported.set("activation_offloading", foreign.switch("activation_offloading") or None)
    for key in ("eos_token", "pad_token"):
        imported.set(f"special_tokens.{key}", foreign.text(key))
    processes = foreign.whole("num_processes")
    foreign.num_ranks = foreign.num_ranks or processes
    fp16 = str(foreign.values.get("fp16", "")).lower() == "true"
    defaults: dict[str, Any] = {**_DEFAULTS, **({} if fp16 else {"bf16": True})}
    take_training_arguments(foreign, imported, defaults)
    flat = imported.flat
    sharded = "deepspeed" in flat or "fsdp_version" in flat
    if whole_bf16 in ("bfloat16", "auto") and flat.get("bf16") and "adapter" not in flat and not sharded:
        flat["bf16"] = "full"  # the weights themselves are of this type there
    return imported


def _lengths(foreign: Foreign, imported: Imported) -> None:
    length = foreign.whole("max_length") or foreign.whole("max_seq_length") or 1024
    imported.set("sequence_len", length)
    foreign.take("max_seq_length")
    strategy = foreign.text("packing_strategy") or "bfd"
    imported.set("excess_length_strategy", _LENGTHS.get(strategy, "truncate"))
    if foreign.switch("packing"):
        imported.set("sample_packing", True)
        if strategy != "bfd":
            imported.notes.append(f"{foreign.source}: packing_strategy: {strategy}: samples are packed whole here")
    imported.set("eval_sample_packing", foreign.switch("eval_packing"))
    imported.set("dataset_num_proc", foreign.whole("dataset_num_proc"))
    template = foreign.text("chat_template_path")
    if template and Path(template).suffix == ".jinja":
        imported.set("chat_template", "jinja")
        imported.set("chat_template_jinja", str(foreign.find(template) or template))
    elif template:
        imported.lost.append(f"{foreign.source}: chat_template_path: {template}: save its template as a .jinja file")


def _data(foreign: Foreign, imported: Imported) -> None:
    mixture = foreign.take("datasets")
    name, subset = foreign.text("dataset_name"), foreign.text("dataset_config")
    train, test = foreign.text("dataset_train_split") or "train", foreign.text("dataset_test_split") or "test"
    field = foreign.text("dataset_text_field")
    assistant, completion = foreign.switch("assistant_only_loss"), foreign.switch("completion_only_loss")
    if isinstance(mixture, list) and mixture:
        written = [dict(spec) for spec in mixture]
    elif name:
        written = [{"path": name, "name": subset, "split": train}]
    else:
        raise ConfigError(f"{foreign.source}: neither dataset_name nor datasets says what to train on")
    specs = []
    for spec in written:
        kept = {key: spec[key] for key in ("path", "name", "split", "data_files") if spec.get(key)}
        for key in spec.keys() - {"path", "name", "split", "data_files"}:
            imported.lost.append(f"{foreign.source}: datasets: {key}: {spec[key]}: not carried over")
        local = foreign.find(kept["path"])
        kept["path"] = str(local) if local else kept["path"]
        specs.append(kept | _type(foreign, imported, kept, field, assistant, completion))
    imported.set("datasets", specs)
    if share := foreign.number("test_split_size"):
        imported.set("val_set_size", share)
    elif name and str(foreign.values.get("eval_strategy", "no")).lower() not in ("no", "false"):
        imported.set("test_datasets", [{**specs[0], "split": test}])


def _type(
    foreign: Foreign,
    imported: Imported,
    spec: dict[str, Any],
    field: str | None,
    assistant: bool | None,
    completion: bool | None,
) -> dict[str, Any]:
    """TRL looks at the columns; so do we where the data is here. What it trains follows from them, too."""
    columns = columns_of(spec["path"])
    if not columns and not (assistant or completion or field):
        why = "its records are not here to look at: taken for conversations; for texts write `type: completion`"
        imported.notes.append(f"{foreign.source}: {spec['path']}: {why}")
    if "prompt" in columns or completion:
        imported.set("train_on_inputs", True if completion is False else None)
        return {"type": dict(_PROMPT)}
    if assistant or {"messages", "conversations"} & columns or not (columns or field):
        if not assistant:
            imported.set("train_on_inputs", True)
        return {"type": "chat_template"}
    return {"type": "completion", **({"field": field} if field and field != "text" else {})}


def columns_of(path: str) -> set[str]:
    """The columns of a local file's first record."""
    from allranks.config.sections.data import DatasetSpec
    from allranks.data.sources import locate, read
    from allranks.errors import DataError

    if not Path(path).exists():
        return set()
    try:
        first = next(iter(read(locate(DatasetSpec.model_validate({"path": path})), "train[:1]")), None)
    except DataError:
        return set()
    return set(first.value) if first and isinstance(first.value, dict) else set()


def _adapter(foreign: Foreign, imported: Imported) -> None:
    numbers = {key: foreign.number(key) for key in ("lora_r", "lora_alpha", "lora_dropout")}
    targets = foreign.words("lora_target_modules")
    parameters, whole = foreign.words("lora_target_parameters"), foreign.words("lora_modules_to_save")
    dora, rslora = foreign.switch("use_dora"), foreign.switch("use_rslora")
    four, eight = foreign.switch("load_in_4bit"), foreign.switch("load_in_8bit")
    double, kind = foreign.switch("use_bnb_nested_quant"), foreign.text("bnb_4bit_quant_type")
    if not foreign.switch("use_peft"):
        return
    imported.set("adapter", "lora")
    for key, default in (("lora_r", 16), ("lora_alpha", 32), ("lora_dropout", 0.05)):
        imported.set(key, default if numbers[key] is None else numbers[key])
    set_targets(imported, targets)
    imported.set("lora_target_parameters", parameters or None)
    imported.set("lora_modules_to_save", whole or None)
    imported.set("peft_use_dora", dora or None)
    imported.set("peft_use_rslora", rslora or None)
    set_quantized(imported, 4 if four else 8 if eight else None, bool(double), kind)
