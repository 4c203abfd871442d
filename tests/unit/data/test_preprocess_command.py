"""`allranks preprocess`, as a user calls it."""

import json
import subprocess
import sys

import pytest

from tests.on_terminal import allranks_on_terminal, cut_words


@pytest.fixture
def config(tmp_path, model_folder, write_jsonl):
    messages = [{"role": "user", "content": "sum?"}, {"role": "assistant", "content": "five"}]
    data = write_jsonl([{"messages": messages}] * 3)
    path = tmp_path / "config.yaml"
    path.write_text(
        f"base_model: {model_folder}\nlearning_rate: 0.001\nchat_template: chatml\n"
        f"dataset_prepared_path: {tmp_path / 'prepared'}\n"
        f"datasets:\n  - path: {data}\n    type: chat_template\n"
    )
    return path


def preprocess(*arguments):
    command = [sys.executable, "-m", "allranks", "preprocess", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_samples_and_counts(config):
    result = preprocess(config, "--show", 1, "--sequence-len", 64, "--sample-packing")
    assert result.returncode == 0, result.stderr
    assert "<|im_start|>user\nsum?<|im_end|>\n<|im_start|>assistant\n⟦five<|im_end|>⟧\n" in result.stdout
    assert "3 records -> 3 documents" in result.stdout and "1 blocks" in result.stdout


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_on_a_terminal_colours_tell_what_is_trained_unless_they_are_not_wanted(config, no_colour):
    shown = allranks_on_terminal(
        *("preprocess", str(config), "--show", "1"), columns=80, cwd=config.parent, env={"NO_COLOR": no_colour}
    )
    assert shown.exit_code == 0, shown.text
    assert ("\x1b[1;32m" in shown.raw) == (not no_colour)
    assert ("⟦five" in shown.text) == bool(no_colour)
    assert not cut_words(shown.lines, 80)


def test_json_is_all_there_is_on_stdout_and_what_the_base_model_makes_needless_is_told_beside_it(config):
    asked = "model_quantization_config: Mxfp4Config\nmodel_quantization_config_kwargs: {dequantize: true}\n"
    config.write_text(config.read_text() + asked)
    done = preprocess(config, "--json")
    assert "warning: model_quantization_config: Mxfp4Config is without effect" in " ".join(done.stderr.split())
    found = json.loads(done.stdout)
    assert found["stats"]["documents"] == 3 and found["path"].endswith(found["fingerprint"][:16])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "data.jsonl: the file is empty"),
        ('{"messages": [\n', "data.jsonl:1: not valid JSON"),
        ('{"conv": []}\n', "data.jsonl:1: no field messages or conversations or conversation; it has conv"),
    ],
)
def test_bad_data_is_one_message_and_exit_2(config, line, message):
    (config.parent / "data.jsonl").write_text(line)
    result = preprocess(config)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr and len(result.stderr.splitlines()) < 10


def test_a_missing_file_is_exit_2(config):
    (config.parent / "data.jsonl").unlink()
    result = preprocess(config)
    assert result.returncode == 2 and "data.jsonl does not exist" in result.stderr and "Traceback" not in result.stderr
