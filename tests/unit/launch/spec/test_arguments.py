import argparse

import pytest

from allranks.errors import UsageError
from allranks.launch.spec.arguments import sort_arguments
from allranks.launch.spec.launcher_options import OPTIONS

OWN = {
    "--nnodes": True,
    "--nproc-per-node": True,
    "--rdzv-backend": True,
    "--ignore-unsupported": False,
    "--help": False,
}


def test_config_keys_are_told_from_own_options():
    words = ["c.yaml", "--max_steps", "2", "--nproc_per_node", "2", "--bf16=false", "--ignore-unsupported"]
    found = sort_arguments(words, OWN)
    assert found.own == ["c.yaml", "--nproc-per-node", "2", "--ignore-unsupported"]
    assert found.config == ["--max_steps", "2", "--bf16=false"]


def test_a_config_key_before_the_config_does_not_swallow_it():
    found = sort_arguments(["--max-steps", "2", "c.yaml"], OWN)
    assert (found.own, found.config) == (["c.yaml"], ["--max-steps", "2"])


def test_values_may_be_negative_and_keys_may_lack_one():
    found = sort_arguments(["c.yaml", "--seed", "-1", "--sample-packing", "--max-steps", "3"], OWN)
    assert found.config == ["--seed", "-1", "--sample-packing", "--max-steps", "3"]


def test_after_a_lone_dash_dash_torchruns_options_and_config_keys_are_dealt_out():
    words = ["c.yaml", "--", "--nnodes", "2", "--rdzv_backend", "c10d", "--max_steps", "2", "--monitor_interval=1"]
    found = sort_arguments([*words, "--rdzv_conf", "join_timeout=60"], OWN)
    assert found.own == ["c.yaml", "--nnodes", "2", "--rdzv-backend", "c10d"]
    assert found.config == ["--max_steps", "2"]
    assert found.launcher == ["--monitor-interval=1", "--rdzv-conf", "join_timeout=60"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["c.yaml", "--", "train.py"], "'train.py' after `--`"),
        (["c.yaml", "--", "--nnodes", "2", "extra"], "'extra' after `--`"),
        (["c.yaml", "--", "-t", "3"], "--tee is an option of torchrun"),
        (["c.yaml", "--log_dir", "x"], "every rank's log is in"),
        (["c.yaml", "--monitor-interval", "1"], "after a lone `--`"),
        (
            ["c.yaml", "--launcher", "accelerate", "--", "--fp8_format", "E4M3"],
            "--fp8_format is an option of accelerate",
        ),
        (["c.yaml", "--launcher=deepspeed", "--", "--include", "node0"], "choose nodes with --hosts"),
        (["c.yaml", "--launcher", "accelerate", "--", "--mixed_precision"], "--mixed_precision needs a value"),
    ],
)
def test_what_belongs_nowhere_is_refused(words, message):
    with pytest.raises(UsageError, match=message):
        sort_arguments(words, OWN)


def test_accelerates_options_become_ours_or_are_compared_with_the_config():
    words = ["c.yaml", "--launcher", "accelerate", "--", "--config_file", "a.yaml", "--num_machines", "2", "--use_fsdp"]
    words += ["--machine_rank=1", "--main_process_ip", "node0", "--main_process_port", "4711", "--num_processes", "4"]
    words += ["--fsdp_offload_params", "true", "--rdzv_conf", "timeout=9", "--gradient_accumulation_steps", "2"]
    own = OWN | {f"--{name}": True for name in ("launcher", "accelerate-config", "node-rank", "master-addr")}
    found = sort_arguments(words, own | {"--master-port": True})
    assert found.own == [
        *("c.yaml", "--launcher", "accelerate", "--accelerate-config", "a.yaml", "--nnodes", "2"),
        *("--node-rank=1", "--master-addr", "node0", "--master-port", "4711"),
    ]
    assert found.settings == {"distributed_type": "FSDP", "num_processes": "4", "fsdp_offload_params": "true"}
    assert found.launcher == ["--rdzv-conf", "timeout=9"]
    assert found.config == ["--gradient_accumulation_steps", "2"]


def test_deepspeeds_options_are_spelt_as_it_spells_them():
    words = ["c.yaml", "--launcher", "deepspeed", "--", "--num-gpus", "2", "--no_ssh", "--bind-cores-to-rank"]
    found = sort_arguments([*words, "--max_steps", "2"], OWN | {"--launcher": True})
    assert found.own == ["c.yaml", "--launcher", "deepspeed", "--nproc-per-node", "2"]
    assert (found.launcher, found.config) == (["--bind_cores_to_rank"], ["--max_steps", "2"])


OURS = {"--nnodes", "--nproc-per-node", "--node-rank", "--master-addr", "--master-port", "--max-restarts", "--help"}
OURS |= {"--rdzv-backend", "--rdzv-id", "--rdzv-endpoint", "--launcher"}
CONFIG_KEYS = {"--gradient-accumulation-steps", "--fsdp-version"}


def options_of(launcher, monkeypatch):
    if launcher == "torchrun":
        from torch.distributed.run import get_args_parser

        return get_args_parser()
    if launcher == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        return launch_command_parser()
    runner = pytest.importorskip("deepspeed.launcher.runner")
    # Its parser is inside a function.
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, args: parser)
    return runner.parse_args([])


@pytest.mark.parametrize("launcher", OPTIONS)
def test_every_option_of_the_installed_launchers_is_known(launcher, monkeypatch):
    """A newer launcher's option must be sorted by decision, not by accident taken for a config key."""
    parser = options_of(launcher, monkeypatch)
    theirs = {option.replace("_", "-") for action in parser._actions for option in action.option_strings}
    theirs = {option for option in theirs if option.startswith("--")} - OURS - CONFIG_KEYS
    known = OPTIONS[launcher]
    names = known.passed.keys() | known.same.keys() | known.settings | known.flags.keys()
    assert {option for option in theirs if option not in names and not known.why_refused(option)} == set()
    assert names - theirs == set()
