"""Two starts into one run directory under torchruns of the user's own, on two machines that share it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.training import Training, make_training

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2)
RANKS = ("-m", "allranks.train", "c.yaml")


def rank_0(training: Training, node: int) -> int:
    """Its process id."""
    found = [one.pid for one in training.lab.node(node).processes()]
    (pid,) = [pid for pid in found if b"\0RANK=0\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    return pid


@pytest.mark.thorough
def test_the_second_start_is_refused_and_a_dead_one_is_in_nobodys_way(lab: Lab, base_config: dict) -> None:
    keys = {"save_strategy": "steps", "save_steps": 10, "auto_resume_from_checkpoints": True}
    training = make_training(lab, "twice", base_config, max_steps=100_000, lr_scheduler="constant", **keys)
    first = training.start(0, (*TORCHRUN, "--max-restarts", 1, *RANKS))
    training.wait_for_step(3, first)
    before = {path: path.read_bytes() for path in training.run.all_events()}

    (refused,) = training.finish([training.start(1, (*TORCHRUN, *RANKS))], expect=[1])
    assert "is in use by a run that has not ended (pid " in refused and " on node0, since 20" in refused
    assert "if node0 and node1 are to be nodes of one run, tell torchrun on each how many there are" in refused
    assert f"should node0 be lost, remove {training.run.logs(0) / 'lock'}" in refused
    assert "Traceback" not in refused.partition("is in use")[0]
    for path, content in before.items():  # of the start that was refused there is nothing
        assert path.read_bytes().count(b'"phase":"data"') == content.count(b'"phase":"data"')
    (refused,) = training.finish([training.start(1, (sys.executable, "-m", "allranks", "train", "c.yaml"))], [3])
    assert "is in use by a run that has not ended (pid " in refused, "node 0 of allranks' own launcher is no exception"

    # torchrun's own restart.
    training.wait_for_step(12, first)
    os.kill(rank_0(training, 0), signal.SIGKILL)
    training.wait_until(lambda: training.run.events(0).read_bytes().count(b'"phase":"train"') == 2, first)

    # All of it is killed: another start, on another machine, goes on at once.
    for process in lab.node(0).processes():
        os.kill(process.pid, signal.SIGKILL)
    said = first.communicate(timeout=30)[0]
    assert "warning: node1 (pid " in said and "was started into this output_dir as well, and refused" in said
    second = training.start(1, (*TORCHRUN, *RANKS))
    training.wait_until(lambda: training.run.events(0).read_bytes().count(b'"phase":"train"') == 3, second)
    for process in lab.node(1).processes():
        os.kill(process.pid, signal.SIGKILL)
    second.communicate(timeout=30)
