"""What `start` refuses before any rank runs."""

import importlib.util
import json

import pytest

from allranks.config import load_config
from allranks.errors import ConfigError, RefusedError, UsageError
from allranks.launch.preflight.refusals import Refusals, refused_here
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.start import start


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"base_model: m\nlearning_rate: 1e-4\noutput_dir: {tmp_path / 'run'}\n"
        "datasets:\n  - {path: d.jsonl, type: alpaca}\n"
    )
    return path


def test_inside_the_ranks_of_another_launcher(config, monkeypatch):
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"rank 1 of 4 .*python -m allranks.train"):
        start(config, {}, LaunchOptions())


def test_deepspeed_that_is_not_installed(config, monkeypatch):
    config.write_text(config.read_text() + "deepspeed: {zero_optimization: {stage: 2}}\n")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "deepspeed" else there(name))
    with pytest.raises(RefusedError, match=r"pip install 'allranks\[deepspeed\]'"):
        start(config, {}, LaunchOptions())


def test_weights_that_no_training_can_go_over(config, tmp_path):
    """Before any rank is there to load them; a check of the nodes says the same."""
    (tmp_path / "gptq").mkdir()
    quantized = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(quantized))
    config.write_text(config.read_text().replace("base_model: m", f"base_model: {tmp_path / 'gptq'}"))
    with pytest.raises(ConfigError, match=r"base_model: .*/gptq holds weights quantized by gptq, .*`adapter: qlora`"):
        start(config, {}, LaunchOptions())
    assert not (tmp_path / "run").exists()
    refusals = Refusals()
    refused_here(load_config(config), resolve(LaunchOptions()), refusals)
    assert any("holds weights quantized by gptq" in text for text in refusals.texts)


def test_an_output_directory_that_cannot_be_written(config, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(RefusedError, match=r"output_dir: .* cannot be written on .*: .*--output-dir"):
        start(config, {}, LaunchOptions())


def test_a_folder_of_checkpoints_that_cannot_be_written_is_found_before_the_first_is(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    with pytest.raises(RefusedError, match=r"output_dir: .*/checkpoints cannot be written on "):
        start(config, {}, LaunchOptions())


def test_checkpoints_of_an_earlier_run(config, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").write_text("{}")
    with pytest.raises(UsageError, match=r"holds checkpoints of an earlier run .*step-00000004"):
        start(config, {}, LaunchOptions())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"], "no lock, and no folder for it"


def test_a_run_that_is_refused_after_its_folder_was_made_leaves_nothing(config, tmp_path):
    with pytest.raises(UsageError, match=r"d\.jsonl"):
        start(config, {}, LaunchOptions())
    assert not (tmp_path / "run").exists()


def test_half_a_multi_node_launch_is_refused_before_the_config_is_read(tmp_path):
    with pytest.raises(UsageError, match="--node-rank without --nnodes"):
        start(tmp_path / "missing.yaml", {}, LaunchOptions(node_rank=1))
