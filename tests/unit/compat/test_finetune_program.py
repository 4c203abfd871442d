"""`python -m allranks.compat.qwen`, up to where the engine starts."""

import subprocess
import sys
from pathlib import Path

import pytest

ZERO3 = Path(__file__).parents[3] / "examples" / "deepspeed" / "zero3.json"
NEEDED = ["--model_name_or_path", "Qwen/Qwen-7B", "--data_path", "data.json", "--output_dir", "out"]


def finetune(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "allranks.compat.qwen", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_help_lists_what_becomes_of_each_argument():
    done = finetune("--help")
    assert done.returncode == 0
    for name, said in (("model_max_length", "sequence_len"), ("lazy_preprocess", "once"), ("label_names", "always")):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"  --{name} ")]
        assert said in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "usage: torchrun"),
        ((*NEEDED, "--learning_rat", "1"), "did you mean --learning_rate?"),
        ((*NEEDED, "--model_max_length", "0"), "--model_max_length: expected an integer"),
        ((*NEEDED, "--use_lora", "--deepspeed", ZERO3), "trains wte and lm_head too, which finetune.py refuses with"),
        (("--model_name_or_path", "Qwen/Qwen-7B-Chat-Int4", *NEEDED[2:]), "Give Qwen/Qwen-7B-Chat: qlora quantizes"),
        ((*NEEDED, "--deepspeed", "no.json"), "--deepspeed: no.json: no such file"),
    ],
)
def test_wrong_usage_is_one_clear_message(words, message):
    done = finetune(*words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
