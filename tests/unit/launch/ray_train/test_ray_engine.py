"""The environment that a rank gets under Ray."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from allranks.cluster.identity import identify
from allranks.findings import Who
from allranks.launch.node import stopped_ranks
from allranks.launch.ray_train import engine as ray_engine
from allranks.launch.ray_train.coordinator import Placement, RankSpec
from allranks.launch.ray_train.engine import Engine, rank_environment
from allranks.live import NodeState

SPEC = RankSpec(
    run_id="r",
    world_size=5,
    config="",
    output_dir="out",
    directory="/shared/my project",
    environment={"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "3"},
    ray_directory="",
    version="1",
    attempt=2,
    master_addr="10.0.0.1",
    master_port=4711,
)


def test_our_engine_reads_its_identity_from_it():
    env = rank_environment({"PATH": "/bin", "RANK": "7", "NCCL_DEBUG": "WARN"}, SPEC, 3, Placement("node1", 1, 0), 2)
    identity = identify(env)
    assert (identity.rank, identity.world_size, identity.local_rank, identity.node_rank) == (3, 5, 0, 1)
    assert (identity.local_world_size, identity.master_addr, identity.master_port) == (2, "10.0.0.1", 4711)
    assert env["PATH"] == "/bin"
    assert env["NCCL_DEBUG"] == "INFO", "the driver's variables win"
    assert Path(env["ALLRANKS_LOG_DIR"]) == Path("/shared/my project/out/logs/node-1")


def test_a_restarted_rank_goes_on_from_the_runs_own_checkpoint():
    assert rank_environment({}, SPEC, 0, Placement("node0", 0, 0), 1)["TORCHELASTIC_RESTART_COUNT"] == "1"


def test_rays_own_number_of_threads_does_not_count():
    env = rank_environment({"OMP_NUM_THREADS": "1"}, SPEC, 0, Placement("node0", 0, 0), 1)
    assert env["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("memory", "told"),
    [("its cgroup ran out of memory", "by the kernel: its cgroup ran out"), ("", "; the kernel has")],
)
def test_a_killed_rank_is_told_by_the_kernels_count(tmp_path, monkeypatch, memory, told):
    monkeypatch.setattr(ray_engine, "killed_since", lambda before: memory)
    with Engine(replace(SPEC, directory=str(tmp_path)), 1, Placement("node0", 0, 0), 1) as engine:
        engine._process.kill()
        assert engine.wait(30)
        end = engine.end()
    assert end.code == -9 and end.message.removeprefix("killed by SIGKILL").strip().startswith(told)
    assert ("want of memory" in end.message) == (memory == "")


def test_a_rank_that_is_ended_for_a_hang_says_so(tmp_path):
    with Engine(replace(SPEC, directory=str(tmp_path)), 1, Placement("node0", 0, 0), 1) as engine:
        engine.end_hung()
        assert engine.wait(30)
        end = engine.end()
    assert (end.code, end.cause, end.attempt) == (1, "hang", 2)
    assert "the ranks hung" in end.message


def test_a_stopped_rank_is_seen_and_let_go_on_when_the_run_is_to_stop(tmp_path, monkeypatch):
    # Python itself, that waits: what is looked at is whether the kernel lets it run.
    waits = type("Waits", (), {"words": lambda self: ["-c", "import time; time.sleep(600)"]})()
    monkeypatch.setattr(ray_engine, "engine", lambda config: waits)
    monkeypatch.setitem(stopped_ranks._PATIENCE_SECONDS, "T", 0.0)
    with Engine(replace(SPEC, directory=str(tmp_path)), 1, Placement("gpu1", 1, 0), 1) as engine:
        pid = engine._process.pid
        assert engine.stopped() == ()
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)  # it has happened now
        (found,) = engine.stopped()
        assert (found.code, found.who) == ("rank-stopped", Who(1, 1, "gpu1"))
        assert found.remedy == f"to let it go on, type on gpu1: kill -CONT {pid}"
        monkeypatch.setattr(engine, "_is_training", lambda: True)
        engine.ask_to_stop()
        engine.stopped()
        assert engine.wait(30), "it could not hear that it is to stop"


def test_a_worker_says_what_its_rank_does(tmp_path):
    with Engine(replace(SPEC, directory=str(tmp_path)), 3, Placement("node1", 1, 0), 1) as engine:
        state = NodeState.from_message(engine.state())
        assert (state.node, state.host, [(rank.rank, rank.pid) for rank in state.ranks]) == (
            1,
            "node1",
            [(3, engine._process.pid)],
        )
        engine._process.kill()
        assert engine.wait(30)
        assert [rank.process_state for rank in NodeState.from_message(engine.state()).ranks] == ["gone"]
