"""Ranks of somebody's own `accelerate launch`: what it tells them, as Accelerate itself sets it, against the config."""

import os

import pytest
import yaml

from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError, UsageError
from allranks.train.under_accelerate import (
    check_accelerate,
    forget_accelerate,
    layers_named_only_there,
    refuse_one_process_of_several,
)

BASE = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "bf16": True}
FSDP = {"fsdp_version": 2, "fsdp_config": {"offload_params": True}}
PLACE = {"num_machines": 2, "machine_rank": 0, "main_process_ip": "10.0.0.1", "main_process_port": 29500}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The variables that `accelerate launch --config_file` adds for its ranks."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    def read(**settings):
        from accelerate.commands.launch import _validate_launch_command, launch_command_parser
        from accelerate.utils.launch import (
            prepare_deepspeed_cmd_env,
            prepare_multi_gpu_env,
            prepare_simple_launcher_cmd_env,
        )

        path = tmp_path / "accelerate.yaml"
        path.write_text(
            yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", **PLACE, "num_processes": 2, **settings})
        )
        args, _, _ = _validate_launch_command(
            launch_command_parser().parse_args(["--config_file", str(path), "-m", "allranks.train"])
        )
        args.deepspeed_fields_from_accelerate_config = ""
        simple = not (args.multi_gpu or args.use_fsdp or args.use_deepspeed) or args.use_cpu
        several = (lambda args: prepare_deepspeed_cmd_env(args)[1]) if args.use_deepspeed else prepare_multi_gpu_env
        env = prepare_simple_launcher_cmd_env(args)[1] if simple else several(args)
        return {name: value for name, value in env.items() if os.environ.get(name) != value}

    return read


def config(**keys):
    return resolve_mapping(BASE | keys)


def test_files_that_say_nothing_of_the_engine_contradict_nothing(environment):
    check_accelerate(config(**FSDP), environment(distributed_type="FSDP"))
    check_accelerate(config(**FSDP), environment(distributed_type="MULTI_GPU"))
    check_accelerate(config(), environment(distributed_type="MULTI_GPU"))
    check_accelerate(config(), {})


def test_deepspeeds_settings_are_compared_and_forgotten(environment):
    cfg = config(deepspeed={"zero_optimization": {"stage": 3}})
    section = {"zero_stage": 3, "zero3_init_flag": True, "deepspeed_multinode_launcher": "standard"}
    env = environment(distributed_type="DEEPSPEED", deepspeed_config=section, mixed_precision="bf16")
    check_accelerate(cfg, env)
    with pytest.raises(ConfigError, match=r"zero_stage \(ACCELERATE_DEEPSPEED_ZERO_STAGE\): 2 contradicts"):
        check_accelerate(cfg, environment(distributed_type="DEEPSPEED", deepspeed_config={**section, "zero_stage": 2}))
    forget_accelerate(env)
    assert not [name for name in env if "DEEPSPEED" in name]


@pytest.mark.parametrize(
    ("keys", "settings", "message"),
    [
        # A file that another project left behind.
        ({}, {"distributed_type": "FSDP"}, r"distributed_type \(ACCELERATE_USE_FSDP\): FSDP contradicts"),
        (
            FSDP,
            {"mixed_precision": "fp16"},
            r"mixed_precision \(ACCELERATE_MIXED_PRECISION\): fp16 contradicts bf16 of",
        ),
        (
            {**FSDP, "fsdp_config": {}},
            {"fsdp_config": {"fsdp_offload_params": True}},
            r"fsdp_offload_params \(FSDP_OFFLOAD_PARAMS\): true contradicts fsdp_config.offload_params of <dict>",
        ),
        (
            {**FSDP, "fsdp_config": {"transformer_layer_cls_to_wrap": "A"}},
            {"fsdp_config": {"fsdp_transformer_layer_cls_to_wrap": "B"}},
            r"\(FSDP_TRANSFORMER_CLS_TO_WRAP\): B contradicts",
        ),
    ],
)
def test_contradictions_name_the_setting_the_variable_and_the_file(environment, tmp_path, keys, settings, message):
    with pytest.raises(ConfigError, match=message) as refused:
        told = environment(**{"distributed_type": "FSDP", **settings})
        check_accelerate(config(**keys), told | {"HF_HOME": str(tmp_path)})
    assert f"{tmp_path}/accelerate/default_config.yaml (which is not there)" in str(refused.value)


def test_the_layers_class_is_taken_where_only_accelerate_was_told(environment):
    told = environment(distributed_type="FSDP", fsdp_config={"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"})
    assert layers_named_only_there(config(**FSDP), told) == {
        "fsdp_config.transformer_layer_cls_to_wrap": "LlamaDecoderLayer"
    }
    own = config(fsdp_version=2, fsdp_config={"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"})
    assert layers_named_only_there(own, told) == {}


@pytest.mark.parametrize("settings", [{"distributed_type": "NO"}, {"distributed_type": "MULTI_CPU"}])
def test_one_process_instead_of_several_is_refused(environment, settings):
    with pytest.raises(UsageError, match="started only this one"):
        refuse_one_process_of_several(environment(**settings))


def test_what_was_compared_is_forgotten(environment):
    env = environment(distributed_type="FSDP") | {"RANK": "0"}
    forget_accelerate(env)
    assert "RANK" in env and not [name for name in env if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))]
