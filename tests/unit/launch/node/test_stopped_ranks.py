"""Whether a rank runs is read from the kernel, of a real process."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from allranks.doctor import causes
from allranks.doctor.stopped import rank_stopped
from allranks.findings import Who
from allranks.launch.node import stopped_ranks
from allranks.launch.node.stopped_ranks import StoppedRanks, rank_number
from allranks.observe.events import PhaseEvent, StepEvent, TimeLimitEvent


@pytest.fixture
def process():
    child = subprocess.Popen([sys.executable, "-c", "input()"], env={**os.environ, "RANK": "3"}, stdin=subprocess.PIPE)
    yield psutil.Process(child.pid)
    child.kill()
    child.communicate()


def stop(process):
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)  # it has happened now


def watch():
    return StoppedRanks(lambda rank, pid, state, seconds: rank_stopped(Who(1, rank, "gpu1"), pid, state, seconds))


def test_a_stopped_rank_is_found_and_one_that_runs_again_is_not(process, monkeypatch):
    monkeypatch.setitem(stopped_ranks._PATIENCE_SECONDS, "T", 0.0)
    watched = watch()
    watched.look([process])
    assert watched.findings == ()
    stop(process)
    watched.look([process])
    (found,) = watched.standing
    assert found.code == causes.RANK_STOPPED and found.who == Who(1, 3, "gpu1")
    assert f"rank 3 (node 1, gpu1, pid {process.pid}) is stopped" in found.what
    assert found.remedy == f"to let it go on, type on gpu1: kill -CONT {process.pid}"
    process.send_signal(signal.SIGCONT)
    os.waitpid(process.pid, os.WCONTINUED)
    watched.look([process])
    assert watched.standing == watched.findings == ()


def test_a_process_without_an_environment_yet_has_no_number_and_is_no_rank_0():
    child = subprocess.Popen([sys.executable, "-c", "input()"], env={}, stdin=subprocess.PIPE)
    known = {}
    with pytest.raises(psutil.Error):
        rank_number(psutil.Process(child.pid), known)
    assert known == {}
    child.communicate(b"\n")


def test_it_is_given_a_moment_but_none_when_the_run_ends(process):
    watched = watch()
    stop(process)
    watched.look([process])
    assert watched.findings == ()
    watched.look([process], at_the_end=True)
    assert len(watched.findings) == 1


def test_a_rank_that_is_let_go_on_stays_what_the_others_waited_for(process):
    watched = watch()
    stop(process)
    watched.look([process], at_the_end=True)
    watched.wake()
    os.waitpid(process.pid, os.WCONTINUED)
    watched.look([process])
    assert watched.standing == () and len(watched.findings) == 1


def test_a_rank_that_waits_in_the_kernel_counts_only_if_it_uses_no_cpu(monkeypatch):
    monkeypatch.setitem(stopped_ranks._PATIENCE_SECONDS, "D", 0.0)

    class Sleeper:
        pid = 4711
        cpu = 0.0

        def status(self):
            return psutil.STATUS_DISK_SLEEP

        def cpu_times(self):
            return (self.cpu, 0.0, 0.0, 0.0)

        def environ(self):
            return {"RANK": "0"}

    rank, watched = Sleeper(), watch()
    watched._describe = lambda number, pid, state, seconds: rank_stopped(Who(0, number), pid, state, 31.0)
    watched.look([rank])
    assert [found.what for found in watched.standing] == [
        "rank 0 (node 0, pid 4711) has waited in the kernel for 31 s, for storage or a device that does not answer, "
        "state D"
    ]
    monkeypatch.setitem(stopped_ranks._PATIENCE_SECONDS, "D", 30.0)
    rank.cpu = 0.01  # it reads, if slowly
    watched.look([rank])
    assert watched.standing == ()


def test_its_own_events_tell_where_it_is_and_how_long_it_is_waited_for():
    events = [
        PhaseEvent(phase="train"),
        TimeLimitEvent(seconds=1800),
        StepEvent(step=12),
        TimeLimitEvent(seconds=300),
    ]
    found = rank_stopped(Who(1, 1, "gpu1"), 7, "T", 3.0, events)
    assert found.what.endswith("state T, in phase train after step 12")
    assert found.remedy.endswith("each collective for 300 s at most")
