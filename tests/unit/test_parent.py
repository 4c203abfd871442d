import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import allranks
from allranks.parent import die_with_parent
from tests.patience import await_end

# Prints the child's id, and ends without it.
LEAVES_A_CHILD = """
import os, subprocess, sys
from allranks.parent import die_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], preexec_fn=die_with_parent)
print(child.pid, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_child_ends_with_its_parent():
    done = subprocess.run([sys.executable, "-c", LEAVES_A_CHILD], capture_output=True, text=True, timeout=60)
    await_end(int(done.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_parent_that_has_gone_before_is_noticed():
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(signal.SIGTERM, parent_pid=1)  # not the one that it has
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_it_is_written_once():
    package = Path(allranks.__file__).parent
    assert [path.name for path in package.rglob("*.py") if "PDEATHSIG" in path.read_text()] == ["parent.py"]
