import os
import subprocess
import sys

import pytest
import yaml

VARIABLES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "GPUS_PER_NODE", "RANK", "WORLD_SIZE")


@pytest.fixture
def allranks(tmp_path):
    def run(*words: str, **variables: str) -> subprocess.CompletedProcess:
        env = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
        return subprocess.run(
            [sys.executable, "-m", "allranks", *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    return run


BASE = ("-m", "Qwen/Qwen2.5-7B-Instruct", "-d", "missing.json")


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (("full", *BASE, "--deepspeed", "zero3.json"), {}, "--deepspeed: zero3.json: no such file"),
        (("fulll", *BASE), {}, "allranks qwen fulll: expected full, lora, qlora"),
        (("lora", *BASE, "--learning-rat", "1"), {}, "did you mean --learning-rate?"),
        (("lora", *BASE, "--model_max_lenght", "9"), {}, "did you mean --sequence-len?"),
        (("lora", *BASE), {"NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "2"}, "NODE_RANK=2 with NNODES=2"),
        (("lora", *BASE), {"NNODES": "2", "NODE_RANK": "1"}, "NNODES=2 also needs MASTER_ADDR"),
        (("lora", *BASE), {"MASTER_ADDR": "a"}, "MASTER_ADDR=a is set and NNODES is not"),
        (("lora", *BASE, "--node-rank", "2"), {"NNODES": "2", "MASTER_ADDR": "a"}, "--node-rank 2 with --nnodes 2"),
    ],
)
def test_wrong_usage_is_one_clear_message(allranks, words, variables, message):
    done = allranks("qwen", *words, **variables)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_what_is_refused_writes_nothing(allranks, tmp_path):
    allranks("qwen", "full", *BASE, "--deepspeed", "zero3.json")
    assert not list(tmp_path.iterdir())


def test_the_config_it_stands_for_can_be_seen_and_started_again(allranks, tmp_path):
    words = ("--output_dir", "out", "--batch-size", "64", "--model_max_length", "256", "--deepspeed", "none")
    done = allranks("qwen", "full", *BASE, *words)
    assert "note: finetune_ds.sh shards by DeepSpeed ZeRO-3; here FSDP2 does" in done.stderr
    assert done.returncode == 2 and "missing.json" in done.stderr and "out/qwen.yaml" in done.stdout
    shown = allranks("config", "show", "out/qwen.yaml", "--batch-size", "64")
    config = yaml.safe_load(shown.stdout)
    assert shown.returncode == 0 and config["fsdp_version"] == 2 and config["sequence_len"] == 512


def test_an_output_directory_that_cannot_be_written(allranks, tmp_path):
    (tmp_path / "file").touch()
    done = allranks("qwen", "lora", *BASE, "--output-dir", "file/out")
    assert done.returncode == 3 and "output_dir: file/out cannot be written" in done.stderr


def test_it_shards_as_the_script_does(allranks, tmp_path):
    done = allranks("qwen", "full", *BASE, "--output_dir", "out")
    assert done.returncode == 2 and "strategy:   DeepSpeed ZeRO-3" in done.stdout and "note:" not in done.stderr
    assert yaml.safe_load((tmp_path / "out" / "qwen.yaml").read_text())["deepspeed"]["zero_optimization"]["stage"] == 3


def test_model_and_data_may_be_variables(allranks):
    done = allranks("qwen", "lora", MODEL="no/such/model", DATA="missing.json")
    assert done.returncode == 2 and "missing.json" in done.stderr
