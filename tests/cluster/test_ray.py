"""Ray Train: a real cluster of this machine's own, real workers, a rank that is killed."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from allranks.checkpoint import commit
from allranks.observe import RunDir, read_events
from allranks.observe.events import ExitEvent
from tests.cluster.conftest import ENVIRONMENT, Run, largest_difference
from tests.patience import TIMEOUT_SECONDS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'"
)
LAUNCH = ("--launcher", "ray", "--ray-address", "local", "--ray-num-workers", "2")
# Few enough steps for float sums to stay close.
# Ray starts a dozen processes before the first rank, which takes minutes beside other tests.
KEYS = {
    "max_steps": 60,
    "save_strategy": "steps",
    "save_steps": 10,
    "learning_rate": 1e-3,
    "ray_start_timeout": int(TIMEOUT_SECONDS),
}


@pytest.fixture(autouse=True)
def _quick_controller(monkeypatch):
    """Ray Train looks after its workers every 2 s, which would be most of the time here."""
    monkeypatch.setitem(ENVIRONMENT, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def wait_for_a_checkpoint(process, directory):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not commit.complete_checkpoints(directory / "checkpoints"):
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no checkpoint was saved:\n{process.communicate()[0]}")
        time.sleep(0.01)


def processes_of(driver_pid, directory):
    """Ray's own processes of a driver's cluster, and the engines of a run, by their command lines."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if f"allranks-ray-{driver_pid}-" in words or f"allranks.train {directory}/" in words:
                found.append(process)
    return found


def engine_of(rank, driver_pid, directory):
    return next(
        process
        for process in processes_of(driver_pid, directory)
        if process.environ().get("RANK") == str(rank) and "allranks.train" in process.cmdline()
    )


def finish(process, directory, expect):
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
    assert process.returncode == expect, output
    assert processes_of(process.pid, directory) == []
    assert list(Path("/tmp").glob(f"allranks-ray-{process.pid}-*")) == []
    return Run(process.returncode, output, RunDir(directory))


def test_a_killed_rank_is_restarted_from_the_newest_checkpoint_and_ray_knows_of_it(
    losses_alone, start, strike, tmp_path
):
    directory, looked_at = tmp_path / "ray", tmp_path / "looked at"
    strike(25, rank=1, awaits=(directory / "checkpoints/*/COMPLETE", looked_at))
    process = start(*LAUNCH, output_dir=directory, ray_run_name="by-name", **KEYS)
    wait_for_a_checkpoint(process, directory)
    victim = engine_of(1, process.pid, directory)
    assert victim.nice() == psutil.Process().nice(), "as if no Ray had started it"
    looked_at.touch()
    done = finish(process, directory, expect=0)
    assert f"attempt 1: rank 1 on {socket.gethostname()} failed: killed by SIGKILL" in done.output
    assert "attempt 2: Ray has started the ranks again" in done.output
    [resumed] = [line for line in done.output.splitlines() if line.startswith("resumed ")]
    assert f"resumed {directory}/checkpoints/step-000000" in resumed
    assert "done: 60 steps" in done.output
    assert "Traceback" not in done.output.partition("attempt 2")[2]

    alone = losses_alone(max_steps=KEYS["max_steps"], learning_rate=KEYS["learning_rate"])
    assert set(done.losses()) == set(range(1, 61))
    assert largest_difference(done.losses(), alone) < 1e-5
    exits = [
        event.code
        for rank in (0, 1)
        for event in read_events(done.directory.events(rank))
        if isinstance(event, ExitEvent) and event.code != 1
    ]
    assert exits == [0, 0], "two ranks, each of which has ended well once"

    [folder] = (directory / "ray").glob("*/by-name")
    told = json.loads((folder / "checkpoint_manager_snapshot.json").read_text())["latest_checkpoint_result"]
    assert told["metrics"]["step"] == 60
    assert told["metrics"]["loss"] == pytest.approx(done.losses()[60])
    pointer = json.loads((folder / told["checkpoint_dir_name"] / "allranks.json").read_text())
    assert pointer["step"] == 60
    assert commit.verify(Path(pointer["checkpoint"])) == []

    manifest = json.loads(done.directory.manifest.read_text())
    assert [node["ranks"] for node in manifest["nodes"].values()] == [[0, 1]]


@pytest.mark.thorough
def test_ranks_that_hang_are_started_again_by_ray(losses_alone, start, strike, tmp_path):
    directory = tmp_path / "ray"
    strike(25, signal.SIGSTOP, rank=1, awaits=(directory / "checkpoints/*/COMPLETE",))
    process = start(*LAUNCH, output_dir=directory, on_hang="restart", hang_timeout={"step": 5}, **KEYS)
    done = finish(process, directory, expect=0)
    assert "error: rank 1 (node 0, " in done.output and "is stopped (state T)" in done.output, done.output
    assert "on_hang: restart: attempt 1 is ended, for Ray to start the ranks again" in done.output, done.output
    assert "attempt 2: Ray has started the ranks again" in done.output
    alone = losses_alone(max_steps=KEYS["max_steps"], learning_rate=KEYS["learning_rate"])
    assert largest_difference(done.losses(), alone) < 1e-5


@pytest.mark.thorough
def test_ctrl_c_saves_every_step_and_leaves_nothing(start, tmp_path):
    directory = tmp_path / "ray"
    process = start(*LAUNCH, output_dir=directory, **{**KEYS, "max_steps": 5000})
    wait_for_a_checkpoint(process, directory)
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(), "the driver does without torch"
    os.kill(process.pid, signal.SIGINT)
    stopped = finish(process, directory, expect=75)
    assert "SIGINT: 2 rank(s) were asked to save a checkpoint and stop" in stopped.output
    newest = commit.step_of(commit.complete_checkpoints(directory / "checkpoints")[0])
    assert f"at step {newest}: saved" in stopped.output
    assert newest == max(stopped.losses()), "not a step is lost"
