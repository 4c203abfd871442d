"""What goes wrong on one rank of two nodes while they train: every terminal names the rank and its node, and the doctor
says the same of what is left.

Each fault is put into rank 1 by a `sitecustomize`, by the name in `FAULT`. Those that make ranks hang are in
test_live.py and test_hangs.py, too.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from allranks.doctor import causes
from allranks.doctor.of_run import diagnosis_of_run
from tests.cluster.lab import Lab
from tests.cluster.training import make_training

TRAIN = (sys.executable, "-m", "allranks", "train", "c.yaml", "--nnodes", 2, "--master-addr", "node0")
INJECTED = """
import os, sys, threading, time

def raises():
    raise ValueError("bad batch 17")

def is_killed():
    os.kill(os.getpid(), 9)

def other_weights():
    frame = sys._getframe()
    while "loop" not in frame.f_locals:
        frame = frame.f_back
    next(frame.f_locals["loop"].model.hf_model.parameters()).data.view(-1)[0] += 1e-3

def other_collective():
    import torch
    torch.distributed.broadcast(torch.zeros(12), 0)

def tokenizes():
    while True:
        " ".join(str(number) for number in range(1000)).split()

# What happens, and after which step.
FAULTS = {
    "exception": (raises, 4),
    "killed": (is_killed, 4),
    "other weights": (other_weights, 1),
    "other collective": (other_collective, 4),
    "tokenizes": (tokenizes, 4),
}

def when_loaded(module, name, change):
    while not hasattr(sys.modules.get(module), name):
        time.sleep(0.01)
    setattr(sys.modules[module], name, change(getattr(sys.modules[module], name)))

def spoilt_steps(reader):
    push = reader.push
    def spoilt(self, step, loss_sums, *args, **kwargs):
        if FAULT == "not a number" and step == 4:
            loss_sums = loss_sums * float("nan")
        do, at = FAULTS.get(FAULT, (None, None))
        if step == at:
            do()
        return push(self, step, loss_sums, *args, **kwargs)
    reader.push = spoilt
    return reader

def blocked_reading(collate):
    calls = []
    def spoilt(*args, **kwargs):
        calls.append(1)
        if len(calls) == 9:
            threading.Event().wait()  # as on a dead mount
        return collate(*args, **kwargs)
    return spoilt

FAULT = os.environ.get("FAULT")
if os.environ.get("RANK") == "1" and FAULT:
    where = ("allranks.train.feed", "collate", blocked_reading) if FAULT == "blocked data" else (
        "allranks.train.stats", "StatsReader", spoilt_steps)
    threading.Thread(target=when_loaded, args=where, daemon=True).start()
"""


@dataclass(frozen=True)
class Fault:
    """What every terminal says of it, and what the doctor does: the cause, of which rank, and how sure it is."""

    name: str
    says: tuple[str, ...]
    cause: str
    certainty: str = "sure"
    rank: int | None = 1
    """None where the doctor cannot know it."""
    exit_code: int = 1
    keys: dict[str, Any] = field(default_factory=dict)


FAULTS = (
    Fault("exception", ("rank 1 (node 1, node1) failed first: ValueError: bad batch 17",), causes.RANK_ERROR, "likely"),
    Fault("killed", ("rank 1 (node 1) failed first: killed by SIGKILL",), causes.RANK_KILLED),
    Fault("not a number", ("step 4: the loss is not finite (nan) on rank 1",), "nan-loss", "likely"),
    Fault(
        "other weights",
        ("after step 1: replicas differ: model.embed_tokens.weight is one on rank 0 and another on rank 1",),
        causes.RANK_ERROR,
        "likely",
        rank=None,
        exit_code=3,
    ),
    Fault(
        "other collective",
        ("error: perhaps: ranks entered different operations", "rank 1 (node 1, node1): broadcast of 12 float"),
        causes.HANG,
        "likely",
    ),
    Fault(
        "blocked data",
        ("error: rank 1 (node 1, node1) never entered all_reduce of ", "sitecustomize.py:55 in spoilt"),
        causes.HANG,
    ),
    Fault(
        "tokenizes",
        ("rank 1 (node 1, node1) did not come to the collective in which rank 0 (node 0) has waited in vain",),
        causes.HANG,
        keys={"ddp_timeout": 8, "hang_timeout": {"step": 100}},
    ),
)


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_one_rank_is_named_on_every_node_and_by_the_doctor(
    fault: Fault, lab: Lab, base_config: dict, request: pytest.FixtureRequest
) -> None:
    keys = {"max_steps": 1000, "num_epochs": 1000, "hang_timeout": {"step": 10}, "save_strategy": "no", **fault.keys}
    training = make_training(lab, request.node.name, base_config, **keys)
    folder = Path(training.config.parent, "fault")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(INJECTED)
    env = {"PYTHONPATH": str(folder), "FAULT": fault.name}
    words = [(*TRAIN, "--master-port", 29545, "--node-rank", rank) for rank in range(2)]
    processes = [training.start(rank, each, **env) for rank, each in enumerate(words)]
    for output in training.finish(processes, expect=[fault.exit_code] * 2):
        for said in fault.says:
            assert said in output, output
    told = diagnosis_of_run(training.run.path)
    assert (told.cause, told.certainty) == (fault.cause, fault.certainty), told
    assert fault.rank is None or told.rank == fault.rank, told
    training.wait_until_gone()
