"""Config keys as options: how they are read, and what they do to a file."""

import pytest

from allranks.config import load_config
from allranks.config.overrides import parse_overrides
from allranks.errors import ConfigError, UsageError

FILE = """\
base_model: model
learning_rate: 1e-4
warmup_steps: 5
flash_attention: true
datasets:
  - path: train.jsonl
    type: alpaca
fsdp_config:
  offload_params: true
  reshard_after_forward: false
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        ([], {}),
        (["--max-steps", "2"], {"max_steps": "2"}),
        (["--max_steps=2"], {"max_steps": "2"}),
        (["--output-dir=a=b"], {"output_dir": "a=b"}),
        (["--output-dir="], {"output_dir": ""}),
        (["--fsdp-config.offload-params", "true"], {"fsdp_config.offload_params": "true"}),
        (["--datasets.0.path", "x"], {"datasets.0.path": "x"}),
        (["--sample-packing", "--max-steps", "2"], {"sample_packing": "true", "max_steps": "2"}),
        (["--no-sample-packing"], {"sample_packing": "false"}),
        (["--bf16"], {"bf16": "true"}),
        (["--flash-attention"], {"flash_attention": "true"}),
        (["--use-wandb"], {"use_wandb": "true"}),
        (["--seed", "-1"], {"seed": "-1"}),
        (["--seed", "1", "--seed=1"], {"seed": "1"}),
    ],
)
def test_arguments(arguments, overrides):
    assert parse_overrides(arguments) == overrides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning-rate", "1"], "--lerning-rate: unknown option or config key; did you mean --learning-rate?"),
        (["--per-device-train-batch-size", "1"], "did you mean --micro-batch-size?"),
        (["--model_max_lenght", "1"], "--model-max-lenght: unknown option or config key; did you mean --sequence-len?"),
        (["--xyzzy"], "--xyzzy: unknown option or config key; `allranks config schema` lists all"),
        (["--no-learning-rate"], "--no-learning-rate: unknown option"),
        (["--learning-rate"], "--learning-rate needs a value, as in `--learning-rate VALUE`"),
        (["--learning-rate", "--seed", "1"], "--learning-rate needs a value"),
        (["config.yaml"], "unexpected argument 'config.yaml'"),
        (["-x"], "unexpected argument '-x'"),
        (["--"], "unexpected argument '--'"),
        (["--seed", "1", "--seed", "2"], "--seed is given twice: '1' and '2'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        parse_overrides(arguments)
    assert message in str(caught.value)


def test_options_win_over_the_file(path):
    config = load_config(
        path,
        {
            "learning-rate": "3e-4",
            "fsdp_config.offload-params": "false",
            "datasets.0.path": "other.jsonl",
            "datasets.1.path": "more.jsonl",
            "datasets.1.type": "completion",
            "special_tokens.pad_token": "<pad>",
            "lora_target_modules": "[q_proj, v_proj]",
            "adapter": "lora",
            "lora_r": "8",
            "lora_alpha": "16",
        },
    )
    assert config.optimizer.learning_rate == 3e-4
    assert config.parallel.fsdp_config.offload_params is False
    assert config.parallel.fsdp_config.reshard_after_forward is False
    assert [(spec.path, spec.type) for spec in config.data.datasets] == [
        ("other.jsonl", "alpaca"),
        ("more.jsonl", "completion"),
    ]
    assert config.model.special_tokens.pad_token == "<pad>"
    assert config.adapter.lora_target_modules == ["q_proj", "v_proj"]


def test_null_takes_a_key_out_of_the_file(path):
    config = load_config(path, {"fsdp_config": "null", "warmup_steps": "", "warmup_ratio": "0.1"})
    assert not config.parallel.uses_fsdp
    assert config.optimizer.warmup_steps is None
    assert config.optimizer.warmup_ratio == 0.1


def test_an_option_can_switch_a_key_off(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(FILE + "max_steps: 10\n")
    assert load_config(path).optimizer.max_steps == 10
    assert load_config(path, {"max_steps": "-1"}).optimizer.max_steps is None


def test_a_whole_value_replaces_the_old_one(path):
    config = load_config(path, {"fsdp_config": "{sync_each_batch: true}", "datasets": "[{path: x}]"})
    assert config.parallel.fsdp_config.sync_each_batch
    assert config.parallel.fsdp_config.reshard_after_forward
    assert config.data.datasets[0].type is None


@pytest.mark.parametrize(
    ("overrides", "attention"),
    [
        ({}, "flash_attention_2"),
        ({"attn_implementation": "sdpa"}, "sdpa"),
        ({"eager_attention": "true"}, "eager"),
        ({"flash_attention": "false"}, None),
        ({"sdp_attention": "false"}, "flash_attention_2"),
    ],
)
def test_old_spellings_are_one_key(path, overrides, attention):
    assert load_config(path, overrides).model.attn_implementation == attention


TEXTS = ["2024", "You are: helpful", "yes", "[a", "# not a comment", "'quoted'", "a\nb", "run #3", "&x", "*y", "!z", ""]


@pytest.mark.parametrize("text", [*TEXTS, "{a: b}", "- a", "1e-4", "null ", " x ", "~x", "%d", "`c`", "@d", "a\tb: c"])
def test_text_is_taken_as_it_is(path, text):
    assert load_config(path, {"default_system_message": text}).data.default_system_message == text
    assert load_config(path, {"datasets.0.name": text}).data.datasets[0].name == text
    # Under its old name, too.
    assert load_config(path, {"model_revision": text}).model.revision_of_model == text


def test_null_takes_a_text_away(path):
    assert load_config(path, {"default_system_message": "null"}).data.default_system_message is None


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_text_beside_lists_and_mappings_is_text(path, text):
    found = load_config(path, {"datasets.0.data_files": text, "output_dir": text})
    assert found.data.datasets[0].data_files == found.checkpoint.output_dir == text


def test_a_list_is_one_where_text_is_taken_as_well(path):
    mapping = {"fsdp_config": "null", "deepspeed": "{zero_optimization: {stage: 0}}"}
    found = load_config(path, {"datasets.0.data_files": "[a, 'b #1']", **mapping})
    assert found.data.datasets[0].data_files == ["a", "b #1"]
    assert found.deepspeed.settings["zero_optimization"] == {"stage": 0}


def test_an_empty_name_is_no_name(path):
    """As where a shell's variable is not set: `--output-dir "$OUT"`."""
    with pytest.raises(ConfigError, match="--output-dir: expected text that is not empty, got ''"):
        load_config(path, {"output_dir": ""})


def test_free_mappings_take_any_value(path):
    overrides = {"overrides_of_model_config.rope_theta": "1e6", "overrides_of_model_config.tie": "false"}
    assert load_config(path, overrides).model.overrides_of_model_config == {"rope_theta": 1e6, "tie": False}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rate": "fast"}, "--learning-rate: expected a number above 0, got 'fast'"),
        ({"learning_rte": "1"}, "--learning-rte: unknown key; did you mean --learning-rate?"),
        (
            {"fsdp_config.offload_parms": "1"},
            "--fsdp-config.offload-parms: unknown key; did you mean --fsdp-config.off",
        ),
        ({"fsdp_config": "{reshard: 1}"}, "--fsdp-config.reshard: unknown key"),
        ({"datasets.0.pth": "x"}, "--datasets.0.pth: unknown key; did you mean --datasets.0.path?"),
        ({"datasets.2.path": "x"}, "--datasets.2.path: datasets has 1 entries; the next is datasets.1"),
        ({"datasets.path": "x"}, "--datasets.path: datasets is a list; name an entry, as in datasets.0.path"),
        (
            {"test_datasets.1.path": "x"},
            "--test-datasets.1.path: test_datasets is empty; its first entry is test_datas",
        ),
        ({"seed.x": "1"}, "--seed.x: expected an integer of at least 0"),
        ({"learning_rate.x": "1"}, "--learning-rate.x: learning_rate has no entry x"),
        ({"seed": "[1"}, "--seed: not valid YAML"),
        ({"tokens": "[{a: 1, a: 2}]"}, "--tokens: a: given twice"),
        ({"warmup_ratio": "0.1"}, "--warmup-ratio: excludes warmup_steps (config.yaml:3: warmup_steps)"),
        ({"batch_size": "8", "gradient_accumulation_steps": "2"}, "--gradient-accumulation-steps: excludes batch_size"),
        (
            {"dataset_processes": "1", "dataset_num_proc": "2"},
            "--dataset-num-proc: 2 contradicts --dataset-processes: 1",
        ),
        ({"deepspeed": "zero3.json"}, "--deepspeed: zero3.json: no such file"),
        ({"fsdp_config.state_dict_type": "LOCAL_STATE_DICT"}, "--fsdp-config.state-dict-type: LOCAL_STATE_DICT: "),
    ],
)
def test_errors_name_the_option(path, monkeypatch, overrides, message):
    monkeypatch.chdir(path.parent)
    with pytest.raises(ConfigError) as caught:
        load_config("config.yaml", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
