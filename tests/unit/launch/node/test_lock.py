import os
import subprocess
import sys

import pytest

from allranks.errors import UsageError
from allranks.launch.node.lock import lock_node


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "run" / "logs" / "node-0"


def test_a_second_launch_is_refused_by_name_until_the_first_has_ended(logs):
    held = lock_node(logs)
    with pytest.raises(UsageError, match=rf"run is in use .*pid {os.getpid()} on"):
        lock_node(logs)
    os.close(held)
    os.close(lock_node(logs))


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


def test_nodes_of_one_run_do_not_exclude_each_other(tmp_path):
    for node in (0, 1):
        os.close(lock_node(tmp_path / "logs" / f"node-{node}"))
