"""DeepSpeed's settings beside a config: from a file or a mapping, filled in, and never in silent contradiction."""

import json
from pathlib import Path

import pytest

from allranks.config import load_config
from allranks.config.load import resolve_mapping
from allranks.config.strategy import strategy
from allranks.errors import ConfigError

REST = "base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {path: d.jsonl, type: alpaca}\n"
EXAMPLES = Path(__file__).parents[4] / "examples" / "deepspeed"
ZERO2 = "deepspeed: {zero_optimization: {stage: 2}}\n"


@pytest.fixture
def load(tmp_path):
    def load(text, settings=None, overrides=None):
        if settings is not None:
            (tmp_path / "ds.json").write_text(json.dumps(settings, indent=1))
            text += "deepspeed: ds.json\n"
        path = tmp_path / "c.yaml"
        path.write_text(REST + text)
        return load_config(path, overrides)

    return load


def refusal(load, *arguments, **settings):
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **settings)
    return str(caught.value)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_file_that_qwens_scripts_pass_runs_and_every_auto_is_the_configs(load, stage):
    text = "bf16: true\nweight_decay: 0.1\nadam_beta2: 0.95\nmicro_batch_size: 2\ngradient_accumulation_steps: 8\n"
    cfg = load(f"{text}lr_scheduler: cosine\nwarmup_ratio: 0.01\ndeepspeed: {EXAMPLES}/zero{stage}.json\n")
    settings = cfg.deepspeed.settings
    assert settings["optimizer"]["params"] == {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    assert settings["bf16"]["enabled"] is True and settings["fp16"]["enabled"] is False
    assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]) == (2, 8)
    assert settings["gradient_clipping"] == 1.0
    assert "scheduler" not in settings and cfg.optimizer.lr_scheduler == "cosine"
    (warning,) = cfg.warnings
    assert f"zero{stage}.json:" in warning and "WarmupLR is not taken: cosine runs" in warning
    assert strategy(cfg, 2)[0] == "zero"
    again = resolve_mapping(cfg.flat())
    assert (again.flat(), again.warnings) == (cfg.flat(), ())


def test_the_files_schedule_runs_where_the_config_names_none(load):
    cfg = load("", {"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_max_lr": "auto"}}})
    assert cfg.optimizer.lr_scheduler == "linear" and not cfg.warnings
    assert load("", {"bf16": {"enabled": True}}).precision.bf16 is True


@pytest.mark.parametrize(
    ("text", "settings", "parts"),
    [
        (
            "micro_batch_size: 2\n",
            {"train_micro_batch_size_per_gpu": 4},
            ["4 contradicts", "c.yaml:5: micro_batch_size"],
        ),
        ("batch_size: 16\n", {"train_batch_size": 32}, ["32 contradicts", "batch_size: 16"]),
        ("gradient_accumulation_steps: 3\n", {"gradient_accumulation_steps": 4}, ["4 contradicts", "c.yaml:5"]),
        ("", {"gradient_clipping": 0.5}, ["max_grad_norm (not given in the config): 1.0"]),
        ("bf16: false\n", {"bf16": {"enabled": True}}, ["bf16.enabled: true contradicts", "c.yaml:5: bf16"]),
        ("bf16: true\n", {"fp16": {"enabled": True}}, ["fp16.enabled: true contradicts", "c.yaml:5: bf16"]),
        ("", {"optimizer": {"type": "Lamb"}}, ["Lamb is not supported"]),
        ("optimizer: sgd\n", {"optimizer": {"type": "AdamW"}}, ["AdamW contradicts", "c.yaml:5: optimizer: sgd"]),
        (
            "",
            {"optimizer": {"type": "AdamW", "params": {"lr": 2e-4}}},
            ["0.0002 contradicts", "c.yaml:2: learning_rate"],
        ),
        ("", {"optimizer": {"type": "AdamW", "params": {"betas": [0.8, 0.9]}}}, ["0.8, 0.9 contradicts", "adam_beta1"]),
        ("", {"scheduler": {"type": "OneCycle"}}, ["OneCycle is not supported", "WarmupLR"]),
        (
            "lr_scheduler: cosine\nwarmup_steps: 5\n",
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}}},
            ["WarmupLR with its own warmup_num_steps contradicts", "c.yaml:5: lr_scheduler: cosine"],
        ),
        ("", {"zero_optimisation": {"stage": 2}}, ["ds.json:2: zero_optimisation", "did you mean zero_optimization?"]),
        ("", {"zero_optimization": {"stage": 2, "overlap_com": True}}, ["ds.json:4", "did you mean overlap_comm?"]),
        ("", {"zero_optimization": {"stage": 5}}, ["expected 0, 1, 2 or 3, got 5"]),
        ("", {"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, ["reduce_bucket_size", "at least 0"]),
        ("", {"zero_optimization": {"stage": 3, "sub_group_size": -5}}, ["sub_group_size", "at least 0"]),
        ("", {"zero_optimization": {"stage": "three"}}, ["expected a whole number", "got 'three'"]),
        ("", {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, ["needs stage 3"]),
        (
            "",
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            ["NVMe offload is not supported"],
        ),
        ("", {"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 8}}, ["ZeRO++ belongs to stage 3"]),
        ("", {"wandb": {"enabled": True}}, ["not taken", "use_wandb"]),
        ("fsdp_version: 2\n", {"zero_optimization": {"stage": 3}}, ["excludes fsdp_version (", "c.yaml:5"]),
        ("dp_shard_size: 2\n", {"zero_optimization": {"stage": 3}}, ["excludes dp_shard_size"]),
        ("optimizer: adafactor\n", {"zero_optimization": {"stage": 1}}, ["flat pieces", "adafactor"]),
        ("ddp_bucket_cap_mb: 9\n", {"zero_optimization": {"stage": 1}}, ["ddp_bucket_cap_mb: has no effect on ZeRO"]),
        ("torch_compile: true\n", {"zero_optimization": {"stage": 3}}, ["torch_compile: false"]),
        ("bf16: full\n", {"zero_optimization": {"stage": 1}}, ["float32 masters"]),
    ],
)
def test_contradictions_are_refused_with_both_places(load, text, settings, parts):
    message = refusal(load, text, settings)
    assert "ds.json" in message or "c.yaml" in message
    for part in parts:
        assert part in message, message


def test_a_file_that_is_not_there_or_not_json(load, tmp_path):
    message = refusal(load, "deepspeed: deepspeed_configs/zero3_bf16.json\n")
    assert "c.yaml:5: deepspeed" in message and "axolotl fetch" in message and "stage: 3" in message
    (tmp_path / "ds.json").write_text('{\n "zero_optimization": {"stage": 2,}\n}')
    assert "ds.json:2: not valid JSON" in refusal(load, "deepspeed: ds.json\n")


def test_settings_that_switch_nothing_on_are_no_problem_and_a_switch_is_changed_on_the_command_line(load):
    off = {"wandb": {"enabled": False}, "amp": {"enabled": False}, "elasticity": {}, "zero_optimization": {"stage": 1}}
    settings = load("", off).deepspeed.settings
    assert settings == {"zero_optimization": {"stage": 1}}
    assert load(ZERO2, overrides={"deepspeed.zero_optimization.stage": "3"}).deepspeed.stage == 3


def test_ranks_that_cannot_be_divided_among_copies_are_refused(load):
    cfg = load("deepspeed: {zero_optimization: {stage: 3, zero_hpz_partition_size: 8}}\n")
    with pytest.raises(ConfigError, match="12 ranks cannot be divided"):
        strategy(cfg, 12)
    assert strategy(cfg, 16) == ("zero", 1, 16)


def test_batch_sizes_that_depend_on_the_ranks_are_compared_when_these_are_known(load):
    cfg = load("micro_batch_size: 2\n", {"train_batch_size": 32, "zero_optimization": {"stage": 2}})
    with pytest.raises(ConfigError, match=r"train_batch_size: 32 contradicts .* on 8 ranks makes it 16"):
        strategy(cfg, 8)
    assert strategy(cfg, 16)[0] == "zero"
    cfg = load("micro_batch_size: 2\nbatch_size: 32\n", {"gradient_accumulation_steps": 4})
    with pytest.raises(ConfigError, match="gradient_accumulation_steps: 4 contradicts"):
        strategy(cfg, 8)
    assert strategy(cfg, 4)[0] == "ddp"


def test_every_field_is_taken_by_its_name_as_well_as_by_its_alias(load):
    """DeepSpeed's models are filled by both (`populate_by_name`); Axolotl's own files have some of each."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields.items()
    aliases = {name: field.alias for name, field in fields if field.alias not in (None, name)}
    assert "max_live_parameters" in aliases
    for name, alias in aliases.items():
        value = name.startswith(("gather", "use_", "allgather")) or 7
        by_name, by_alias = (load("", {"zero_optimization": {"stage": 3, key: value}}) for key in (name, alias))
        assert by_name.deepspeed.settings == by_alias.deepspeed.settings, name
        assert by_name.deepspeed.zero[alias] == value
        in_yaml = load(f"deepspeed: {{zero_optimization: {{stage: 3, {name}: {str(value).lower()}}}}}\n")
        assert in_yaml.deepspeed.settings == by_name.deepspeed.settings


def test_a_field_under_both_its_names_is_a_contradiction_with_both_lines(load):
    both = {"max_live_parameters": 1, "stage3_max_live_parameters": 2}
    said = refusal(load, "", settings={"zero_optimization": {"stage": 3, **both}})
    assert "ds.json:5: zero_optimization.stage3_max_live_parameters: 2 contradicts" in said and "ds.json:4" in said


def test_a_comment_is_a_comment_wherever_it_stands(load):
    plain = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "gradient_clipping": 1.0}
    noted = {
        "_comment": "for 8 GPUs",
        "zero_optimization": {"_comment_2": ["a", "b"], "offload_optimizer": {"_comment": {"a": 1}, "device": "cpu"}},
        "//": "see the wiki",
    }
    noted["zero_optimization"]["stage"], noted["gradient_clipping"] = 2, 1.0
    assert load("", noted).deepspeed.settings == load("", plain).deepspeed.settings


def test_the_section_of_deepspeeds_compiler_is_noted_unless_it_is_switched_on(load):
    cfg = load("", {"compile": {"disable": False, "backend": "inductor"}, "zero_optimization": {"stage": 1}})
    assert "compile" not in cfg.deepspeed.settings and "torch_compile" in cfg.warnings[0]
    assert "own compiler is not supported" in refusal(load, "", settings={"compile": {"deepcompile": True}})
