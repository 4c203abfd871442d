"""`allranks config` as users run it."""

import json
import subprocess
import sys

import pytest

from allranks.config import load_config
from allranks.config.load import resolve_mapping

FILE = """\
base_model: model
learning_rate: 1e-4
strict: true
sequence_len: 512
datasets:
  - {path: train.jsonl, type: alpaca}
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text(FILE)

    def run(*arguments):
        command = [sys.executable, "-m", "allranks", "config", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_show_prints_a_config_that_loads_to_the_same(run, tmp_path):
    done = run("show", "--sample-packing", "--learning-rate", "3e-4", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: config.yaml:3: strict: has no effect: unknown keys are always errors\n"
    (tmp_path / "shown.yaml").write_text(done.stdout)
    shown = load_config(tmp_path / "shown.yaml")
    assert (shown.optimizer.learning_rate, shown.data.sample_packing) == (3e-4, True)
    as_json = run("show", "config.yaml", "--json", "--learning-rate=3e-4", "--sample-packing")
    assert resolve_mapping(json.loads(as_json.stdout)).sha256() == shown.sha256()


def test_schema_prints_a_schema(run):
    done = run("schema")
    assert done.returncode == 0
    assert json.loads(done.stdout)["properties"]["lora_r"]["description"] == "Rank of the adapter's matrices."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere.yaml"], "error: nowhere.yaml: no such file; give the path of a YAML config\n"),
        (["show", "config.yaml", "--seed", "x"], "error: --seed: expected an integer of at least 0"),
        (["show", "config.yaml", "--sed", "1"], "error: --sed: unknown option or config key; did you mean --seed?\n"),
        (["show", "config.yaml", "--", "--seed", "1"], "error: `allranks config show` takes nothing after `--`"),
    ],
)
def test_errors_are_one_line_and_exit_2(run, arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
