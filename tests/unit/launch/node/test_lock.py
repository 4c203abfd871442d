import os
import socket
import subprocess
import sys
import threading

import pytest

from allranks.launch.node import lock
from allranks.launch.node.lock import InUse, Twice, forget_lock, lock_node
from allranks.launch.node.refused_starts import words_left


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
from allranks.launch.node.lock import lock_node
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
