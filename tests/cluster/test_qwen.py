"""`allranks qwen` as two nodes, which know each other from the variables of Qwen's scripts."""

import json
import subprocess
import sys

import pytest

from allranks.observe import RunDir
from tests.cluster.conftest import ENVIRONMENT, TIMEOUT_SECONDS, Run, free_port, largest_difference

# Dropout draws other numbers on each rank; all else stays as the scripts have it.
CHANGED = [
    "--max_steps",
    "3",
    "--bf16",
    "false",
    "--lora-dropout",
    "0",
    "--model_max_length",
    "64",
    "--gradient_accumulation_steps",
]


@pytest.fixture
def qwen(tiny, qwen_data, tmp_path):
    def start(name: str, *words: str, **variables: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "allranks", "qwen", "lora", "-m", str(tiny.model), "-d", "data.json"]
        return subprocess.Popen(
            [*command, "--output_dir", name, *words],
            env={**ENVIRONMENT, **variables},
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


def finish(tmp_path, name, *processes) -> Run:
    try:
        outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return Run(0, outputs[0], RunDir(tmp_path / name))


def test_two_nodes_train_as_one_process(qwen, tmp_path):
    port = str(free_port())
    place = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GPUS_PER_NODE": "1"}
    nodes = [qwen("two", *CHANGED, "2", NODE_RANK=str(node), **place) for node in (1, 0)]
    two = finish(tmp_path, "two", *reversed(nodes))
    assert "world size: 2 = 2 node(s) x 1 process(es)" in two.output and f"127.0.0.1:{port}" in two.output
    one = finish(tmp_path, "one", qwen("one", *CHANGED, "4"))
    assert len(one.losses()) == 3 and largest_difference(two.losses(), one.losses()) < 1e-5
    adapter = json.loads((tmp_path / "two" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["modules_to_save"]) == (64, 16, ["embed_tokens", "lm_head"])
