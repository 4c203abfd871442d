"""A finished run must be told as finished: gloo's threads sometimes abort a process that has done all its work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo  # else by the first step of every optimizer: half of what a rank takes here
import torch.distributed as dist
import yaml
from torch import nn
from torch.distributed.fsdp import fully_shard

from allranks.cluster.identity import identify
from allranks.train.world import exit_rank, join
from tests.cluster.conftest import ENVIRONMENT
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

RUNS = 40


@pytest.mark.thorough
def test_no_rank_of_40_fsdp_runs_dies_after_its_work_is_done():
    codes = [_run_two_ranks() for _ in range(RUNS)]
    assert codes == [(0, 0)] * RUNS


def test_a_tear_down_that_aborts_does_not_make_a_finished_run_a_failed_one(base_config: dict, tmp_path: Path) -> None:
    """The race made certain: here every interpreter that is torn down aborts, as gloo's threads sometimes make it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\nif 'LOCAL_RANK' in os.environ:\n    atexit.register(os.abort)\n"
    )
    config = {**base_config, "max_steps": 2, "fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "output_dir": str(tmp_path / "run")}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "allranks.train", "c.yaml"],
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    assert "done: 2 steps" in done.stdout


def _run_two_ranks() -> tuple[int, int]:
    """Fork two ranks, so that the import of torch is paid for once; their exit codes (negative: the signal)."""
    port = free_port()
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            _rank(rank, port)
        children.append(pid)
    first, second = (os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)
    return first, second


def _rank(rank: int, port: int) -> None:
    code = 1
    identity = None
    try:
        torch.set_num_threads(1)
        identity = identify(
            {
                "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }
        )  # fmt: skip
        join(identity, timeout_seconds=60, needs_group=True)
        model = fully_shard(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1)))
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            model(torch.randn(4, 64)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        group = dist.new_group(backend="gloo")
        dist.barrier(group=group)
        code = 0
    finally:
        if identity is not None:
            exit_rank(code, identity)
        os._exit(code)
