"""Other spellings of keys: Axolotl's older ones, which are understood, and other trainers', which lead to a hint."""

import re
from typing import Any

from allranks.config.yaml_lines import KeyPath, parse_yaml

RENAMED = {
    "model_config": "overrides_of_model_config",
    "model_revision": "revision_of_model",
    "type_of_model": "model_type",
    "rope_scaling": "overrides_of_model_config.rope_scaling",
    "exact_deduplication": "dataset_exact_deduplication",
    "save_steps_per_epoch": "saves_per_epoch",
    **{f"tokens.{name}_token": f"special_tokens.{name}_token" for name in ("bos", "eos", "pad", "unk")},
    "dataset_processes": "dataset_num_proc",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "evaluation_strategy": "eval_strategy",
    "sequence_parallel_degree": "context_parallel_size",
    "fsdp_final_state_dict_type": "fsdp_config.final_state_dict_type",
    "fsdp_config.fsdp_version": "fsdp_version",
    "fsdp_config.version": "fsdp_version",
    "network.timeout": "ddp_timeout",
    "liger_swiglu": "liger_glu_activation",
    # What DeepSpeed's own models call these fields; it takes both names.
    **{
        f"deepspeed.zero_optimization.{name}": f"deepspeed.zero_optimization.stage3_{name}"
        for name in (
            *("prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold"),
            *("max_live_parameters", "max_reuse_distance", "gather_16bit_weights_on_model_save"),
            *("module_granularity_threshold", "use_all_reduce_for_fetch_params", "allgather_sequential"),
        )
    },
    "datasets.*.conversation": "datasets.*.chat_template",
    "datasets.*.message_field_role": "datasets.*.message_property_mappings.role",
    "datasets.*.message_field_content": "datasets.*.message_property_mappings.content",
}
"""Old spelling -> the key it stands for. `*` is any index; `test_datasets` has the same as `datasets`."""

ATTENTION = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
    "flex_attention": "flex_attention",
}
"""Old switch -> value of `attn_implementation`. A switch that is off says nothing."""

VALUES: dict[str, dict[str, Any]] = {
    "optimizer": {
        "adamw_8bit": "adamw_bnb_8bit",
        "adamw_hf": "adamw_torch",
        "ao_adamw_8bit": "adamw_torch_8bit",
        "ao_adamw_4bit": "adamw_torch_4bit",
        "rmsprop_bnb_32bit": "rmsprop_bnb",
    },
    "activation_offloading": {"legacy": True},
    "gradient_checkpointing": {"unsloth": "offload"},
    "ddp_comm_hook": {"no": "none", "powersgd": "power_sgd"},
}
"""Key -> old value -> the value it stands for."""

NO_OF_YAML = ("save_strategy", "eval_strategy", "ddp_comm_hook")
"""Keys with the value `no`, which YAML 1.1 reads as false."""

ON_OFF_OF_YAML = (("network", "infiniband"), ("plan",))
"""Paths with the values `on` and `off`, which YAML 1.1 reads as true and false."""

LISTS_AS_TEXT = (
    *(("network", "hcas"), ("network", "debug_subsystems")),
    *(("preflight", "strict"), ("preflight", "ignore"), ("preflight", "skip")),
)
"""Paths of lists that may be one text with commas, as in environment variables and on the command line."""

OFF = {
    "max_steps": -1,
    **dict.fromkeys(
        (
            *("evals_per_epoch", "saves_per_epoch", "eval_steps", "save_steps", "early_stopping_patience"),
            *("cosine_constant_lr_ratio", "loraplus_lr_ratio", "neftune_noise_alpha", "embedding_lr"),
            *("embedding_lr_scale", "lr_div_factor", "loss_watchdog_threshold", "loss_watchdog_patience"),
            *("profiler_steps", "min_sample_len", "ddp_bucket_cap_mb", "chunked_cross_entropy_num_chunks"),
        ),
        0,
    ),
}
"""Values by which a key says that it is not used, as in transformers and Axolotl."""

HINTS = {
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_batch_size": "micro_batch_size",
    "train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "preprocessing_num_workers": "dataset_num_proc",
    "val_size": "val_set_size",
    "split_dataset_ratio": "val_set_size",
    "eval_dataset": "test_datasets",
    "val_dataset": "test_datasets",
    "dataset_name": "datasets.0.path",
    "eval_packing": "eval_sample_packing",
    "truncation_strategy": "excess_length_strategy",
    "default_system": "default_system_message",
    "system": "default_system_message",
    "attn_impl": "attn_implementation",
    "use_dora": "peft_use_dora",
    "use_rslora": "peft_use_rslora",
    "init_weights": "peft_init_lora_weights",
    "init_lora_weights": "peft_init_lora_weights",
    "modules_to_save": "lora_modules_to_save",
    "lora_plus_lr_ratio": "loraplus_lr_ratio",
    "lorap_lr_ratio": "loraplus_lr_ratio",
    "tokenized_path": "dataset_prepared_path",
    "tokenizer_name_or_path": "tokenizer_config",
    "lora_path": "lora_model_dir",
    "gradient_clipping": "max_grad_norm",
    "gradient_clip_val": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "max_seq_len": "sequence_len",
    "seq_len": "sequence_len",
    "sequence_length": "sequence_len",
    "block_size": "sequence_len",
    "grad_accum_steps": "gradient_accumulation_steps",
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "num_train_epochs": "num_epochs",
    "epochs": "num_epochs",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "optim": "optimizer",
    "max_seq_length": "sequence_len",
    "max_length": "sequence_len",
    "model_max_length": "sequence_len",
    "cutoff_len": "sequence_len",
    "packing": "sample_packing",
    "model": "base_model",
    "model_name_or_path": "base_model",
    "tokenizer": "tokenizer_config",
    "data_path": "datasets.0.path",
    "dataset": "datasets",
    "eval_data_path": "test_datasets.0.path",
    "lora_rank": "lora_r",
    "target_modules": "lora_target_modules",
    "lora_target": "lora_target_modules",
    "use_lora": "adapter",
    "global_batch_size": "batch_size",
    "num_workers": "dataset_num_proc",
    "adam_eps": "adam_epsilon",
    "clip_grad": "max_grad_norm",
    "comm_hook": "ddp_comm_hook",
    "comm_state_option": "ddp_comm_state_option",
    "bfloat": "bf16",
    "attention": "attn_implementation",
}
"""What other trainers call a key -> the key; only for the text of an error."""


def current_spelling(path: KeyPath, value: Any) -> tuple[KeyPath, Any] | None:
    """The path and value that an entry stands for; None for an entry that says nothing."""
    if path[0] == "deepspeed" and str(path[-1]).startswith(("_comment", "//")):
        return None  # JSON has no other way to write a comment
    path = _renamed(_without_fsdp_prefix(path))
    if len(path) == 1 and path[0] in OFF and value == OFF[str(path[0])] and not isinstance(value, bool):
        return None
    if len(path) == 1 and path[0] in ATTENTION and isinstance(value, bool):
        return (("attn_implementation",), ATTENTION[str(path[0])]) if value else None
    if len(path) == 1 and path[0] in NO_OF_YAML and value is False:
        value = "no"
    if len(path) == 1 and path[0] in VALUES and isinstance(value, str):
        value = VALUES[str(path[0])].get(value, value)
    if path in ON_OFF_OF_YAML and isinstance(value, bool):
        value = "on" if value else "off"
    if path in LISTS_AS_TEXT and isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if path == ("network", "buffer_size") and isinstance(value, str):
        value = _bytes(value)
    if path == ("network", "debug") and isinstance(value, str):
        value = value.upper()
    if path == ("fsdp",) and isinstance(value, str):
        value = value.replace(",", " ").split()  # the spelling of transformers: "full_shard auto_wrap"
    if path == ("optim_args",) and isinstance(value, str):
        value = _arguments(value)
    if path == ("added_tokens_overrides",) and isinstance(value, dict):
        value = {str(number): token for number, token in value.items()}  # a number would be the place in a list
    return path, value


def _arguments(text: str) -> Any:
    """`a=1,b=2` as a mapping; text of any other form as it is."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key.strip() and equals for key, equals, _ in pairs):
        return text
    return {key.strip(): parse_yaml(value, "optim_args")[0] for key, _, value in pairs}


def _bytes(text: str) -> Any:
    """`4MiB` as a number of bytes; text of any other form as it is."""
    match = re.fullmatch(r"(\d+) ?([KMG])iB", text.strip())
    return int(match[1]) * 1024 ** ("KMG".index(match[2]) + 1) if match else text


def _without_fsdp_prefix(path: KeyPath) -> KeyPath:
    if len(path) > 1 and path[0] == "fsdp_config" and isinstance(path[1], str) and path[1] != "fsdp_version":
        return (path[0], path[1].removeprefix("fsdp_"), *path[2:])
    return path


def _renamed(path: KeyPath) -> KeyPath:
    generic = ".".join("*" if isinstance(part, int) else part for part in path)
    new = RENAMED.get(generic.removeprefix("test_"))
    if new is None:
        return path
    indexes = iter(part for part in path if isinstance(part, int))
    parts = tuple(next(indexes) if part == "*" else part for part in new.split("."))
    return ("test_datasets", *parts[1:]) if path[0] == "test_datasets" else parts
