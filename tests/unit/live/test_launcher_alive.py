"""Whether a launcher can be asked is told by the table that it writes."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from allranks.live.launcher import no_launcher
from allranks.live.live_file import write_live
from allranks.live.state import LiveEnd, LiveTable, NodeState
from allranks.observe import RunDir


def table(pid: int | None, *, host: str | None = None, age: float = 0.0) -> LiveTable:
    node = NodeState(node=0, host=host or socket.gethostname(), t=time.time() - age, launcher_pid=pid)
    return LiveTable(run_id="a run", t=time.time() - age, nodes=(node,))


def written(folder: Path, one: LiveTable, age: float = 0.0) -> RunDir:
    run = RunDir(folder)
    write_live(run, one)
    os.utime(run.live, (time.time() - age,) * 2)
    return run


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_one_that_has_written_just_now_can_be_asked(tmp_path: Path) -> None:
    assert no_launcher(written(tmp_path, table(os.getpid()))) is None
    assert no_launcher(written(tmp_path, table(os.getpid(), age=900.0))) is None  # a clock that goes wrong
    assert no_launcher(written(tmp_path, table(None))) is None
    assert no_launcher(written(tmp_path, replace(table(None), nodes=()))) is None


@pytest.mark.parametrize("pid", [-1, 0])
def test_what_is_no_process_is_not_taken_for_one(tmp_path: Path, pid: int) -> None:
    assert no_launcher(written(tmp_path, table(pid, age=5.0), age=5.0)) is None


def test_one_that_is_gone_is_known_at_once_on_its_host_only(tmp_path: Path, gone: int) -> None:
    here, where = table(gone, age=5.0), socket.gethostname()
    assert no_launcher(written(tmp_path, here, age=5.0)) == f"the run's launcher on {where} (pid {gone}) is gone"
    assert no_launcher(written(tmp_path, table(gone, host="gpu1", age=5.0), age=5.0)) is None


def test_one_that_writes_nothing_any_more_is_named(tmp_path: Path) -> None:
    said = no_launcher(written(tmp_path, table(1, host="gpu1", age=3600.0), age=3600.0))
    assert said is not None
    assert said.startswith("the run's launcher on gpu1 does not answer: it has written nothing for 3,6")


def test_a_run_that_has_ended_or_has_no_table_says_so(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert no_launcher(run) == f"no launcher of this run can be asked: there is no live.json in {tmp_path}"
    ended = replace(table(os.getpid()), ended=LiveEnd(exit_code=75, finding=None))
    assert no_launcher(written(tmp_path, ended)) == "the run has ended with exit code 75"
    run.live.write_text("{")
    assert no_launcher(run) == f"no launcher of this run can be asked: {run.live} cannot be read"
