"""Every key that Axolotl knows for supervised fine-tuning is known here too: supported, without effect, or refused."""

import re
from pathlib import Path

import pytest

from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError

# The names of the keys of Axolotl 0.19 and 0.21 (the parts of its schema that a run without `rl` can use), and older
# ones that its published examples have.
KEYS = (Path(__file__).parent / "keys.txt").read_text().split()
MINIMAL = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "alpaca"}]}


def with_key(path: str, value: object) -> dict:
    """MINIMAL with one more key. A nested key brings the mapping that holds it."""
    config = {**MINIMAL, "datasets": [dict(MINIMAL["datasets"][0])]}
    holder = config
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for part in parents:
        if isinstance(holder, dict) and not isinstance(holder.get(part), dict | list):
            holder[part] = {}
        holder = holder[part]
    holder[last] = value
    return config


@pytest.mark.parametrize("value", [True, 3, "text"])
def test_no_key_of_axolotls_is_unknown(value):
    unknown = []
    for key in KEYS:
        try:
            resolve_mapping(with_key(key, value))
        except ConfigError as error:
            unknown += [key] if "unknown key" in str(error) else []
    assert unknown == []


def test_an_empty_key_says_nothing_whatever_it_is():
    """As the published examples have it: `wandb_project:` with nothing after it."""
    plain = resolve_mapping(MINIMAL)
    for key in KEYS:
        if key.rpartition(".")[2] not in ("base_model", "learning_rate", "datasets", "path"):
            empty = with_key(key, None)
            if key.startswith("datasets.0.type."):
                empty["datasets"][0]["type"] = {"field_output": "output", key.rpartition(".")[2]: None}
                continue
            if key == "datasets.0.type":
                continue  # without one, records are tokens
            config = resolve_mapping(empty)
            assert (config.flat(), config.warnings) == (plain.flat(), ()), key


def test_what_is_refused_says_why_and_what_is_without_effect_too():
    """A key that is taken out is named with a reason; none of them is dropped without a word."""
    silent = []
    for key in KEYS:
        try:
            config = resolve_mapping(with_key(key, "text"))
        except ConfigError as error:
            assert re.search(rf"\b{key.rpartition('.')[2]}[.\w]*: \S.{{9,}}", str(error)), (key, str(error))
            continue
        said = any(re.search(rf"\b{key.rpartition('.')[2]}: has no effect", line) for line in config.warnings)
        if not said and config.flat() == resolve_mapping(MINIMAL).flat():
            silent.append(key)
    assert silent == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"curriculum_sampling": True, "shuffle_merged_datasets": True}, "one keeps the data in its order"),
        ({"curriculum_sampling": True, "group_by_length": True}, "both choose the order of the data"),
        (
            {"curriculum_sampling": True, "sample_packing": True, "sample_packing_sequentially": False},
            "must be true for `curriculum_sampling`",
        ),
        ({"sample_packing_sequentially": True}, "needs `sample_packing: true`"),
        ({"dataset_shard_num": 2}, "need each other"),
        ({"dataset_shard_num": 2, "dataset_shard_idx": 2}, "must be below `dataset_shard_num`, 2"),
        ({"eval_sequence_len": 64, "val_set_size": 0.1}, "eval_sequence_len: needs `test_datasets`"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end: needs evaluation data"),
        ({"eval_on_start": True}, "eval_on_start: needs evaluation data"),
        ({"chat_template_kwargs": {"messages": []}}, "is set by the data itself"),
        ({"added_tokens_overrides": {"<|tool|>": "x"}}, "expected the number of a token"),
        ({"datasets": [{"path": "d", "type": "jeopardy"}]}, "a prompt of one data set; write it as a mapping"),
        ({"fsdp_config": {"sharding_strategy": "SHARD_GRAD_OP"}}, "use `reshard_after_forward`"),
    ],
)
def test_keys_that_contradict(keys, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve_mapping({**MINIMAL, **keys})


def test_what_the_first_fsdp_says_that_the_second_does_anyway_passes():
    keys = {"sharding_strategy": "FULL_SHARD", "backward_prefetch": "BACKWARD_PRE", "use_orig_params": True}
    config = resolve_mapping({**MINIMAL, "fsdp_config": {f"fsdp_{key}": value for key, value in keys.items()}})
    assert config.parallel.uses_fsdp and config.parallel.fsdp_settings.reshard_after_forward and config.warnings == ()


NOTED = {
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "use_kernels", "fused_attn_kernel"), True),
    **dict.fromkeys(("xformers_attention", "liger_rms_norm_gated", "use_scattermoe", "flash_attn_fuse_mlp"), True),
    "experts_implementation": "scattermoe",
    "attn_implementation": "xformers",
    "gradient_checkpointing_kwargs.use_reentrant": True,
    "fsdp_config.cpu_ram_efficient_loading": False,
    "fsdp_config.fsdp_cpu_ram_efficient_loading": False,
    "fsdp_config.sync_module_states": False,
    "fsdp_config.limit_all_gathers": False,
    "fsdp_config.forward_prefetch": True,
    "fsdp_config.backward_prefetch": "BACKWARD_POST",
    "fsdp_config.use_orig_params": False,
    "lora_r": 8,
    "lora_target_linear": True,
}


@pytest.mark.parametrize("key", NOTED)
def test_what_makes_no_difference_to_the_result_is_noted_and_not_refused(key):
    around = {"gradient_checkpointing": True, "fsdp_version": 2}
    config = resolve_mapping({**with_key(key, NOTED[key]), **around})
    (warning,) = config.warnings
    assert "has no effect" in warning and key.rpartition(".")[2].removeprefix("fsdp_") in warning
    if key not in ("lora_r", "lora_target_linear"):
        plain = resolve_mapping({**MINIMAL, **around})
        assert config.parallel.fsdp_settings == plain.parallel.fsdp_settings
        assert {**config.flat(), "fsdp_config": None} == {**plain.flat(), "fsdp_config": None}


def test_a_plugin_that_makes_no_difference_is_left_out_of_the_list():
    liger, kernels = "axolotl.integrations.liger.LigerPlugin", "axolotl.integrations.kernels.KernelsPlugin"
    config = resolve_mapping({**MINIMAL, "plugins": [kernels, liger]})
    assert config.kernels.plugins == [liger] and "plugins.0: " in config.warnings[0]


# Dropped, these would mean more memory, other tokens or other numbers.
@pytest.mark.parametrize(
    "key",
    [
        "tokenizer_use_mistral_common",
        "llama4_linearized_experts",
        "tiled_mlp",
        "qat",
        "sage_attention",
        "s2_attention",
        "ple_cpu_offload",
        "use_dsv4_kernels",
        "fp32_norms",
    ],
)
def test_what_makes_a_difference_stays_refused(key):
    with pytest.raises(ConfigError, match=f"{key}: not supported yet"):
        resolve_mapping(with_key(key, True))


@pytest.mark.parametrize(
    "key",
    [
        "cosine_constant_lr_ratio",
        "loraplus_lr_ratio",
        "neftune_noise_alpha",
        "early_stopping_patience",
        "eval_steps",
        "save_steps",
        "embedding_lr",
        "evals_per_epoch",
        "saves_per_epoch",
        "loss_watchdog_threshold",
    ],
)
def test_0_switches_off_what_cannot_be_0(key):
    assert resolve_mapping({**MINIMAL, key: 0}).flat() == resolve_mapping(MINIMAL).flat()


def test_lora_target_linear_and_modules_are_a_union():
    adapter = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
    for modules in (["embed_tokens"], "embed_tokens"):
        config = resolve_mapping({**MINIMAL, **adapter, "lora_target_modules": modules}).adapter
        assert config.lora_target_linear and config.lora_target_modules == modules
    with pytest.raises(ConfigError, match="a pattern excludes lora_target_linear"):
        resolve_mapping({**MINIMAL, **adapter, "lora_target_modules": r".*\.(q|k)_proj"})
