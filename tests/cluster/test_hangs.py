"""Other ways to hang in a real run: where it is held up is said on every node, with the rank and its node.

test_live.py tries the first; each of these is put into ranks by a `sitecustomize`, by the name in `FAULT`.
"""

import sys
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.training import make_training

TRAIN = (sys.executable, "-m", "allranks", "train", "c.yaml", "--nnodes", 2, "--master-addr", "node0")
HANG_SECONDS = 10
INJECTED = """
import os, sys, threading, time

FAULT, RANK = os.environ.get("FAULT"), os.environ.get("RANK")

def when_loaded(module, name, spoil):
    while not hasattr(sys.modules.get(module), name):
        time.sleep(0.01)
    owner = sys.modules[module]
    setattr(owner, name, spoil(getattr(owner, name)))

def each_step(do):
    def spoil(reader):
        push = reader.push
        def spoilt(self, step, *args, **kwargs):
            if step == 4:
                do()
            return push(self, step, *args, **kwargs)
        reader.push = spoilt
        return reader
    return spoil

def other_shape():
    import torch
    torch.distributed.all_reduce(torch.zeros(9 if RANK == "1" else 8))

def deadlock():
    one, other, met = threading.Lock(), threading.Lock(), threading.Barrier(2)
    def take(first, second):
        with first:
            met.wait()
            with second:
                pass
    threading.Thread(target=take, args=(other, one), daemon=True).start()
    take(one, other)

STATS = ("allranks.train.stats", "StatsReader")
FAULTS = {
    "deadlock": ("1", *STATS, each_step(deadlock)),
    "other shape": ("01", *STATS, each_step(other_shape)),
}
if RANK and FAULT in FAULTS and RANK in FAULTS[FAULT][0]:
    threading.Thread(target=when_loaded, args=FAULTS[FAULT][1:], daemon=True).start()
"""

# What is said of each: of the rank that differs, with its node, and where in the code it is.
SAID = {
    "deadlock": ("error: rank 1 (node 1, node1) never entered all_reduce of 12 float ", "{fault}:32 in take"),
    "other shape": (
        "rank 0 (node 0) was aborted in a collective at {fault}:25 in other_shape: ",
        "rank 1 (node 1, node1)",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", SAID)
def test_what_holds_the_run_up_is_named_on_every_node(
    fault: str, lab: Lab, base_config: dict, request: pytest.FixtureRequest
) -> None:
    keys = {"max_steps": 1000, "num_epochs": 1000, "hang_timeout": {"step": HANG_SECONDS}, "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **keys)
    folder = Path(training.config.parent, "fault")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(INJECTED)
    env = {"PYTHONPATH": str(folder), "FAULT": fault}
    words = [(*TRAIN, "--master-port", 29542, "--node-rank", rank) for rank in range(2)]
    outputs = training.finish([training.start(rank, each, **env) for rank, each in enumerate(words)], expect=[1, 1])
    for output in outputs:
        for said in SAID[fault]:
            assert said.format(fault=folder / "sitecustomize.py") in output, output
        assert "failed first" not in output, output
    training.wait_until_gone()
