"""Nodes need no shared file system: each of two nodes has its own run directory."""

import shutil
import subprocess
import sys

import pytest
import yaml

from allranks.checkpoint import commit
from allranks.observe import RunDir
from tests.cluster.conftest import ENVIRONMENT, Run, largest_difference
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

KEYS = {
    "output_dir": "run",  # relative: node-a/run and node-b/run
    "fsdp_version": 2,
    "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"},
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 2,
    "max_steps": 12,
    "lr_scheduler": "constant_with_warmup",  # the same rates for a run of 9 steps and one of 12
}


@pytest.fixture
def on_two_nodes(base_config, tmp_path):
    def start(*words: str, expect: int = 0, **keys: object) -> list[str]:
        """Run this command of Python's as two nodes, in node-a and node-b."""
        address = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
        address += ["--master-port", str(free_port())]
        processes = []
        for node_rank, name in enumerate(("node-a", "node-b")):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "config.yaml").write_text(yaml.safe_dump({**base_config, **KEYS, **keys}))
            here = [*address, "--node-rank", str(node_rank)]
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *(each for word in words for each in (here if word == "HERE" else [word]))],
                    env=ENVIRONMENT,
                    cwd=folder,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in processes]
        assert [process.returncode for process in processes] == [expect, expect], "\n-----\n".join(outputs)
        return outputs

    return start


@pytest.fixture
def train_on_two_nodes(on_two_nodes):
    def train(*arguments: str, expect: int = 0) -> list[str]:
        return on_two_nodes("allranks", "train", "config.yaml", "HERE", *arguments, expect=expect)

    return train


def test_no_lost_disk_loses_a_committed_step(train_on_two_nodes, losses_alone, tmp_path):
    expected = losses_alone(max_steps=12, lr_scheduler=KEYS["lr_scheduler"])
    train_on_two_nodes("--max-steps", "9")
    names = ("node-a", "node-b")
    folders = [RunDir(tmp_path / name / "run").checkpoints for name in names]
    for directory in folders:
        assert [commit.step_of(path) for path in commit.complete_checkpoints(directory)] == [9, 6]
    assert not (commit.checkpoint_path(folders[0], 9) / "__1_0.distcp").exists(), "the folders are not separate"

    # The disk of either node is new: nothing starts, be it to go on or to begin anew, and nothing is touched.
    going_on = (("--auto-resume-from-checkpoints", "true"), "step-00000009 is committed, but")
    anew = ((), "this run would begin at step 0, but there are checkpoints")
    for lost, left, (arguments, told) in ((0, 1, going_on), (1, 0, anew)):
        run_directory, aside = tmp_path / names[lost] / "run", tmp_path / names[lost] / "aside"
        run_directory.rename(aside)
        before = sorted(folders[left].rglob("*"))
        for output in train_on_two_nodes(*arguments, expect=3):
            assert told in output and "step-00000009 (" in output and f"node {lost} (" in output
            assert "no checkpoint in" in output and "Traceback" not in output
        assert sorted(folders[left].rglob("*")) == before
        assert not run_directory.exists()  # a refused start leaves nothing
        aside.rename(run_directory)

    # A marker is enough on any node, and a file wherever it lies.
    (commit.checkpoint_path(folders[0], 9) / commit.MARKER).unlink()
    outputs = train_on_two_nodes("--auto-resume-from-checkpoints", "true")
    assert "at step 9 of 12" in outputs[0]
    losses = Run(0, "", RunDir(tmp_path / "node-a" / "run")).losses()
    assert largest_difference(losses, expected) < 1e-5


@pytest.mark.thorough
def test_ranks_of_a_launcher_of_ones_own_refuse_it_too(on_two_nodes, tmp_path):
    program = ("torch.distributed.run", "HERE", "-m", "allranks.train", "config.yaml")
    on_two_nodes(*program, "--max-steps", "3")
    shutil.rmtree(tmp_path / "node-a" / "run")
    refused = on_two_nodes(*program, "--auto-resume-from-checkpoints", "true", expect=1)
    assert "step-00000003 is committed, but" in refused[0]
    refused = on_two_nodes(*program, expect=1)
    assert "holds checkpoints of an earlier run (newest: step-00000003)" in refused[0]
    assert not commit.complete_checkpoints(RunDir(tmp_path / "node-a" / "run").checkpoints)


def test_different_weights_on_one_node_are_refused(on_two_nodes, tiny, tmp_path):
    """One tensor of node-b's model is another one's: under FSDP half of each rank's shards would come from it."""
    for name in ("node-a", "node-b"):
        shutil.copytree(tiny.model, tmp_path / name / "model")
    weights = tmp_path / "node-b" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 64
    weights.write_bytes(content)

    for output in on_two_nodes("allranks", "train", "config.yaml", "HERE", expect=3, base_model="model"):
        assert "base_model: model.safetensors: " in output and "node 1 (" in output
        assert output.count("sha256") == 2, "only what differs is told"
    own = ("torch.distributed.run", "HERE", "-m", "allranks.train", "config.yaml")
    refused = on_two_nodes(*own, expect=1, base_model="model")
    assert "base_model: model.safetensors: " in refused[0] and "rank 1 (" in refused[0]
    assert not (tmp_path / "node-a" / "run" / "checkpoints").exists()
