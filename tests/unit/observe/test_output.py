import os
import signal
import subprocess
import sys

from tests.patience import await_end, has_ended

RANK = """
import os, sys
from allranks.observe import redirect_rank_output
redirect_rank_output(int(sys.argv[1]))
print("from python")
os.system("echo from a child")
raise RuntimeError("broken here")
"""


def run_rank(rank, folder, terminal=None):
    env = os.environ | {"ALLRANKS_LOG_DIR": str(folder)} | ({"ALLRANKS_TERMINAL": str(terminal)} if terminal else {})
    return subprocess.run([sys.executable, "-c", RANK, str(rank)], env=env, capture_output=True, text=True)


def test_other_ranks_write_everything_to_their_log(tmp_path):
    done = run_rank(3, tmp_path)
    assert done.stdout == done.stderr == ""
    log = (tmp_path / "rank-00003.log").read_text()
    assert "from python\n" in log and "from a child\n" in log and "RuntimeError: broken here" in log


def test_rank_0_writes_to_the_terminal_and_its_traceback_to_both(tmp_path):
    terminal = tmp_path / "terminal"
    terminal.touch()
    done = run_rank(0, tmp_path, terminal)
    assert done.stdout == done.stderr == ""
    shown = terminal.read_text()
    assert "from a child" in shown and "RuntimeError: broken here" in shown
    log = (tmp_path / "rank-00000.log").read_text()
    assert "RuntimeError: broken here" in log and "from python" not in log


def test_rank_0_without_a_terminal_keeps_its_output(tmp_path):
    done = run_rank(0, tmp_path, tmp_path / "gone" / "tty")
    assert "from python" in done.stdout and "broken here" in done.stderr


CHILD = """
import time
from allranks.parent import die_with_parent
die_with_parent()
print("up", flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_dies_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        (pid,) = (int(line) for line in lines if line.isdigit())
        assert not has_ended(pid)
        os.kill(process.pid, signal.SIGKILL)
    await_end(pid)
