"""The limit of collectives is long before the first step and short after it, in every group but that of saves."""

import datetime
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh

from allranks.config.sections.parallel import START_TIMEOUT_SECONDS
from allranks.observe import EventLog, read_events
from allranks.observe.events import TimeLimitEvent
from allranks.train.time_limit import TimeLimit, limit_collectives
from allranks.train.traffic import CHECKPOINT_GROUP
from tests.ranks import run_ranks


def limits() -> dict[str, set[float]]:
    """Seconds, by what the group is for."""
    found: dict[str, set[float]] = {}
    for group in distributed_c10d._world.pg_map:
        backend = group._get_backend(torch.device("cpu"))
        backend = getattr(backend, "wrapped_pg", backend)
        found.setdefault(group.group_desc, set()).add(backend.options._timeout.total_seconds())
    return found


def _rank(rank: int, folder: Path) -> None:
    init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    dist.new_group([0, 1], group_desc="a library's own", timeout=datetime.timedelta(seconds=7))
    dist.new_group([0, 1], group_desc=CHECKPOINT_GROUP, timeout=datetime.timedelta(seconds=1234))
    log = EventLog(folder / f"{rank}.jsonl", rank)
    said = {}
    limit = TimeLimit(None, log)
    for name, change in {
        "start": limit.begin,
        "first step, which compiles": lambda: limit.after_step(30.0),
        "second step": lambda: limit.after_step(0.1),
        "third step": lambda: limit.after_step(100.0),
        "later": lambda: limit.after_step(0.001),
        "end": limit.begin,
    }.items():
        change()
        said[name] = limits()
    fixed = TimeLimit(40, log)
    fixed.begin()
    fixed.after_step(0.1)
    said["asked for"] = limits()
    torch.save(said, folder / f"{rank}.pt")
    if os.environ.get("TORCH_DISTRIBUTED_DEBUG") == "DETAIL":
        return  # its wrapper waits in a barrier of its own
    # What is set holds: rank 1 does not come to this one.
    limit_collectives(0.2)
    done = folder / "done"
    if rank == 0:
        with pytest.raises(RuntimeError, match="Timed out waiting 200ms"):
            dist.all_reduce(torch.ones(1))
        done.touch()
    while not done.exists():
        time.sleep(0.01)
    os._exit(0)  # the group is of no use any more


@pytest.mark.parametrize("debug", ["OFF", "DETAIL"])
def test_every_group_but_that_of_saves_follows_the_steps(tmp_path, monkeypatch, debug):
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", debug)
    run_ranks(_rank, tmp_path)
    expected = {
        "start": START_TIMEOUT_SECONDS,
        "first step, which compiles": 600,
        "second step": 300,
        "third step": 300,
        "later": 300,
        "end": START_TIMEOUT_SECONDS,
        "asked for": 40,
    }
    for rank in (0, 1):
        for name, of_groups in torch.load(tmp_path / f"{rank}.pt").items():
            assert of_groups.pop(CHECKPOINT_GROUP) == {1234}
            assert {"default_pg", "a library's own", "mesh_shard"} <= set(of_groups)
            assert all(seconds == {expected[name]} for seconds in of_groups.values()), (name, of_groups)
        told = [event.seconds for event in read_events(tmp_path / f"{rank}.jsonl") if isinstance(event, TimeLimitEvent)]
        assert told == [START_TIMEOUT_SECONDS, 600, 300, START_TIMEOUT_SECONDS, 40]
