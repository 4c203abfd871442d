"""A rank is asked for its stacks and its flight recorder while its main thread hangs, and nobody else gets a signal."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from allranks.evidence.in_program.allranks_answers import STACKS_SIGNAL
from allranks.evidence.rank_memory import (
    CannotAsk,
    RankProcess,
    describe,
    flight_recorder,
    handles,
    python_stacks,
    ranks_here,
    start_time,
)
from tests.unit.evidence.hanging_ranks import DEADLINE_SECONDS, THIS_RUN, entered, hanging, when


def _deadline() -> float:
    return time.monotonic() + DEADLINE_SECONDS


@contextlib.contextmanager
def found(function, folder: Path, num_ranks: int = 1) -> Iterator[list[RankProcess]]:
    with hanging(function, folder, num_ranks):
        yield ranks_here(run_id=THIS_RUN)


def _in_a_lock(rank: int, ready) -> None:
    ready()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()  # blocked in C


def _in_a_collective(rank: int, ready) -> None:
    dist.all_reduce(torch.ones(3))
    if rank == 1:
        ready()
        time.sleep(1000)
    when(entered(2), ready)
    dist.all_reduce(torch.ones(5))


def test_a_rank_blocked_in_c_tells_its_stacks_again_and_again(tmp_path):
    with found(_in_a_lock, tmp_path) as (rank,):
        for _ in range(2):
            text = python_stacks(rank, deadline=_deadline())
            assert text.count("in _in_a_lock") == 1
            assert f'File "{__file__}"' in text
        assert flight_recorder(rank, deadline=_deadline())["groups"] == {}


def test_the_flight_recorder_is_read_while_a_collective_hangs(tmp_path):
    with found(_in_a_collective, tmp_path, num_ranks=2) as ranks:
        assert [one.rank for one in ranks] == [0, 1]
        waits, sleeps = (flight_recorder(one, deadline=_deadline()) for one in ranks)
        assert "_in_a_collective" in python_stacks(ranks[0], deadline=_deadline())
    assert waits["groups"] == {"0": {"desc": "default_pg", "ranks": [0, 1]}}
    entries = [entry for recorder in waits["recorders"] for entry in recorder["entries"]]
    assert [(entry["input_sizes"], entry["retired"]) for entry in entries] == [([[3]], True), ([[5]], False)]
    assert len([entry for recorder in sleeps["recorders"] for entry in recorder["entries"]]) == 1


def test_one_asks_at_a_time(tmp_path):
    with found(_in_a_lock, tmp_path) as (rank,), contextlib.ExitStack() as others:
        for fd in (rank.said.stacks_fd, rank.said.recorder_fd):
            file = others.enter_context(Path(f"/proc/{rank.pid}/fd/{fd}").open("rb"))
            fcntl.flock(file, fcntl.LOCK_EX)
        for ask in (python_stacks, flight_recorder):
            with pytest.raises(CannotAsk, match="somebody else"):
                ask(rank, deadline=time.monotonic() + 0.3)
        others.close()
        assert "_in_a_lock" in python_stacks(rank, deadline=_deadline())


def test_a_stopped_rank_does_not_keep_who_asks(tmp_path):
    with found(_in_a_lock, tmp_path) as (rank,):
        os.kill(rank.pid, signal.SIGSTOP)
        with pytest.raises(CannotAsk, match="it is stopped, or waits in the kernel"):
            python_stacks(rank, deadline=time.monotonic() + 0.3)
        with pytest.raises(CannotAsk, match="does not run"):
            flight_recorder(rank, deadline=time.monotonic() + 0.3)
        os.kill(rank.pid, signal.SIGCONT)
        assert "_in_a_lock" in python_stacks(rank, deadline=_deadline())


def test_ranks_are_found_by_their_run_or_its_folder_and_no_other(tmp_path):
    with found(_in_a_lock, tmp_path) as (rank,):
        assert ranks_here(output_dir=tmp_path) == [rank]
        assert ranks_here(run_id="another-run") == []
        assert ranks_here(output_dir=tmp_path / "elsewhere") == []
        assert ranks_here(run_id=THIS_RUN, launch_id="another-launch") == []
        assert ranks_here() == []


def _stranger() -> subprocess.Popen:
    """A program of anyone's, which any signal would end."""
    env = {**os.environ, "ALLRANKS_RUN_ID": "foreign", "RANK": "4"}
    return subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"], env=env, stdout=-1
    )


def test_no_process_gets_a_signal_that_is_not_the_one_that_was_found(tmp_path):
    with _stranger() as stranger, found(_in_a_lock, tmp_path) as (rank,):
        stranger.stdout.readline()
        (program,) = ranks_here(run_id="foreign")
        assert (program.rank, program.pid, program.said) == (4, stranger.pid, None)
        assert describe(stranger.pid) is None
        assert not handles(stranger.pid, STACKS_SIGNAL)
        assert handles(rank.pid, STACKS_SIGNAL)
        # As if its number had become the stranger's, or a file had named it.
        began = start_time(stranger.pid)
        for wrong in (
            program,
            RankProcess(4, stranger.pid, began, rank.said),
            RankProcess(rank.rank, rank.pid, rank.start_time + 1, rank.said),
        ):
            for ask in (python_stacks, flight_recorder):
                with pytest.raises(CannotAsk):
                    ask(wrong, deadline=_deadline())
        assert stranger.poll() is None
        stranger.kill()
        stranger.wait()
    with pytest.raises(CannotAsk):
        python_stacks(rank, deadline=_deadline())
