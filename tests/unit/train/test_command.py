"""`python -m allranks.train`, up to where the engine starts."""

import os
import subprocess
import sys

import pytest

from tests.cluster.forked import ForkedRanks

RANK_1_OF_2 = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


@pytest.fixture
def config(tmp_path):
    """Ends with exit code 2 as soon as the engine looks at its output directory."""
    (tmp_path / "file").touch()
    path = tmp_path / "c.yaml"
    path.write_text(
        f"base_model: m\nlearning_rate: 1e-4\noutput_dir: {tmp_path / 'file' / 'run'}\nis_llama_derived_model: true\n"
        "use_comet: true\ndatasets:\n  - {path: d.jsonl, type: alpaca}\n"
    )
    return path


def one_rank(*arguments, **variables):
    command = [sys.executable, "-m", "allranks.train", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=100)


def warm_rank(config, *arguments, **variables):
    """The same for what gets as far as the engine, whose imports take seconds: its exit code, and all that it wrote."""
    output = config.with_suffix(".out")
    ranks = ForkedRanks([str(argument) for argument in arguments], 1, 0, output, os.environ | variables)
    return ranks.wait(100), output.read_text()


def test_unsupported_keys_can_be_ignored_with_a_warning_of_rank_0(config):
    refused = one_rank(config)
    assert refused.returncode == 2 and "use_comet" in refused.stderr and "cannot be written" not in refused.stderr
    code, first = warm_rank(config, config, "--ignore-unsupported", "--max-steps", "2")
    assert code == 3 and "cannot be written" in first
    assert "warning: " in first and "use_comet" in first and "is_llama_derived_model" in first
    code, second = warm_rank(config, config, "--ignore-unsupported", **RANK_1_OF_2)
    assert code == 3 and "cannot be written" in second and "warning" not in second


def test_a_resolved_config_is_read_as_it_is(config):
    """An old spelling is the user's, and the launcher has written its present name."""
    read = one_rank(config, "--resolved")
    assert read.returncode == 2 and "is_llama_derived_model is no key of a resolved config" in read.stderr


def test_what_deepspeed_puts_before_all_else_is_understood(config):
    code, output = warm_rank(config, "--local_rank=1", config, "--ignore-unsupported", **RANK_1_OF_2)
    assert code == 3 and "cannot be written" in output


def test_one_task_of_a_batch_job_does_not_train_alone(config):
    done = one_rank(config, SLURM_JOB_ID="7", SLURM_NTASKS="2")
    assert done.returncode == 2 and "would train alone" in done.stderr
