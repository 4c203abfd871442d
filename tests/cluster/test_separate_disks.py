"""Nodes need no shared file system: each of two nodes has its own run directory."""

import subprocess
import sys

import pytest
import yaml

from allranks.checkpoint import commit
from allranks.observe import RunDir
from tests.cluster.conftest import ENVIRONMENT, TIMEOUT_SECONDS, Run, free_port, largest_difference

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
def train_on_two_nodes(base_config, tmp_path):
    def train(*arguments: str) -> list[str]:
        port = free_port()
        processes = []
        for node_rank, name in enumerate(("node-a", "node-b")):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "config.yaml").write_text(yaml.safe_dump({**base_config, **KEYS}))
            command = [
                sys.executable,
                "-m",
                "allranks",
                "train",
                "config.yaml",
                "--nnodes",
                "2",
                "--nproc-per-node",
                "1",
            ]
            command += ["--node-rank", str(node_rank), "--master-addr", "127.0.0.1", "--master-port", str(port)]
            processes.append(
                subprocess.Popen(
                    [*command, *arguments],
                    env=ENVIRONMENT,
                    cwd=folder,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], "\n-----\n".join(outputs)
        return outputs

    return train


def test_a_checkpoint_of_two_disks_is_resumed_although_a_shard_was_lost_on_one(train_on_two_nodes, run, tmp_path):
    expected = run(max_steps=12, lr_scheduler=KEYS["lr_scheduler"]).losses()
    train_on_two_nodes("--max-steps", "9")
    first, second = (RunDir(tmp_path / name / "run").checkpoints for name in ("node-a", "node-b"))
    for directory in (first, second):
        assert [commit.step_of(path) for path in commit.complete_checkpoints(directory)] == [9, 6]
    newest = commit.checkpoint_path(first, 9)
    assert not (newest / "__1_0.distcp").exists(), "the folders are not separate"
    (newest / "__0_0.distcp").unlink()  # node-a loses its shard of step 9; that of step 6 is on node-b's disk alone

    outputs = train_on_two_nodes("--auto-resume-from-checkpoints", "true")
    assert "step-00000009 is damaged: not used" in outputs[0]
    assert "at step 6 of 12" in outputs[0]
    losses = Run(0, "", RunDir(tmp_path / "node-a" / "run")).losses()
    assert largest_difference(losses, expected) < 1e-5
