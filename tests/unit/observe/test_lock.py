import errno
import os
import socket
import subprocess
import sys
import threading

import pytest

from allranks.observe import lock
from allranks.observe.lock import InUse, Twice, forget_lock, lock_node
from allranks.observe.refused_starts import words_left


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "run" / "logs" / "node-0"


def test_a_second_launch_is_refused_by_name_until_the_first_has_ended(logs):
    held = lock_node(logs)
    with pytest.raises(InUse, match=rf"run is in use .*pid {os.getpid()} on"):
        lock_node(logs)
    os.close(held)
    os.close(lock_node(logs))


def test_the_holder_is_told_of_the_second_launch_until_another_takes_the_lock(logs):
    held = lock_node(logs)
    twice = Twice(lambda host: f"not beside {host}", "was given --node-rank 0 too")
    with pytest.raises(InUse, match=f"not beside {socket.gethostname()}$"):
        lock_node(logs, twice=twice)
    (word,) = words_left(logs / "lock")
    assert word.text == f"{socket.gethostname()} (pid {os.getpid()}) was given --node-rank 0 too"
    os.close(held)
    held = lock_node(logs)
    assert words_left(logs / "lock") == []
    os.close(held)


# Takes the lock and is killed; a child that inherited it, as torchrun's agent does, lives until its stdin is closed.
KILLED = """
import os, subprocess, sys
from pathlib import Path
from allranks.observe.lock import lock_node
fd = lock_node(Path(sys.argv[1]))
subprocess.Popen(["cat"], stdin=0, stdout=subprocess.DEVNULL, pass_fds=[fd])
print("locked", flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_ranks_of_a_killed_launcher_are_waited_for(logs):
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(logs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout.readline() == "locked\n"
    killed.wait()
    said = []

    def ranks_end(text):
        said.append(text)
        killed.stdin.close()

    os.close(lock_node(logs, say=ranks_end))
    assert said == ["waiting for the ranks of the run before, whose launcher was killed, to end"]
    killed.stdout.close()


def test_the_ranks_of_an_attempt_before_are_waited_for(logs):
    held = lock_node(logs)
    threading.Timer(0.3, os.close, [held]).start()
    os.close(lock_node(logs, is_again=True))


def test_ranks_that_meet_where_those_that_hold_it_met_wait_for_them(logs):
    """A launcher of the user's own that restarts its ranks need not count it."""
    held = lock_node(logs, ranks="node0:29500")
    threading.Timer(1.0, os.close, [held]).start()
    with pytest.raises(InUse, match="ranks of node0:29500"):
        lock_node(logs, ranks="node0:29501")
    os.close(lock_node(logs, ranks="node0:29500"))


def test_a_start_again_waits_longer_for_a_machine_that_may_be_lost(logs, monkeypatch):
    held = lock_node(logs)
    (logs / "lock").write_text("pid 7 on elsewhere, since 2026-01-01 00:00:00 UTC\n")
    said = []

    def lease_ends(text):
        said.append(text)
        os.close(held)

    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.0)
    os.close(lock_node(logs, is_again=True, say=lease_ends))
    assert said[0].startswith("waiting for pid 7 on elsewhere, since 2026-01-01 00:00:00 UTC to end, or for its lock")


def test_what_to_do_about_a_machine_that_is_lost_is_told(logs):
    held = lock_node(logs)
    (logs / "lock").write_text("pid 7 on elsewhere\n")
    with pytest.raises(InUse, match=f"; should elsewhere be lost, remove {logs / 'lock'}$"):
        lock_node(logs)
    (logs / "lock").unlink()
    os.close(lock_node(logs))
    os.close(held)


def test_a_file_system_without_locks_is_told(logs, monkeypatch):
    def refuse(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    said = []
    os.close(lock_node(logs, say=said.append, tells_of_no_locks=True))
    assert len(said) == 1 and f"the file system of {logs.parent.parent} has no locks" in said[0]
    os.close(lock_node(logs, say=said.append))
    assert len(said) == 1 and lock.holder_of_other_ranks(logs, "") is None


def test_nodes_of_one_run_do_not_exclude_each_other(tmp_path):
    for node in (0, 1):
        os.close(lock_node(tmp_path / "logs" / f"node-{node}"))


def test_a_lock_that_a_refused_run_has_taken_away_is_made_anew(logs, monkeypatch):
    """Who opened the old one just before must not hold a lock that nobody else sees."""
    opened = []

    def open_and_lose(path):
        opened.append(really(path))
        if len(opened) == 1:
            forget_lock(logs, opened)
            assert not logs.exists()
        return opened[-1]

    really = lock._open
    monkeypatch.setattr(lock, "_open", open_and_lose)
    held = lock_node(logs)
    assert len(opened) == 2 and os.path.samestat(os.fstat(held), (logs / "lock").stat())
    with pytest.raises(InUse, match="is in use"):
        lock_node(logs)
    os.close(held)


def test_what_else_lies_there_stays(logs):
    first = lock_node(logs)
    (logs / "rank-00000.log").write_text("of an earlier run")
    forget_lock(logs, [first])
    assert [path.name for path in logs.iterdir()] == ["rank-00000.log"]
    os.close(first)
