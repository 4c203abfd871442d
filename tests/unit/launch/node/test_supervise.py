"""The supervisor with a stand-in for torchrun's agent: its rank is in a session of its own, as a real one is."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from allranks.doctor.stopped import rank_stopped
from allranks.findings import Finding, Who
from allranks.launch.node import supervise as supervise_module
from allranks.launch.node.supervise import supervise
from tests.patience import TIMEOUT_SECONDS

LOST = Finding("node-lost", "node 1 is lost")
RANK = """
import os, signal, sys, time
def stop(number, frame):
    open(sys.argv[2] + "/" + signal.Signals(number).name, "w").close()
    os._exit(75)
if sys.argv[3] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, stop)
open(sys.argv[2] + "/ready", "w").write(str(os.getpid()))
time.sleep(120)
"""
# As accelerate and deepspeed do, it puts a process in between; as torchrun does, it numbers the ranks.
BETWEEN = f"""
import os, subprocess, sys
command = [sys.executable, "-c", {RANK!r}, "rank", *sys.argv[1:]]
rank = subprocess.Popen(command, start_new_session=True, env=os.environ | {{"RANK": "0"}})
sys.exit(rank.wait())
"""
AGENT = f"""
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", {BETWEEN!r}, *sys.argv[1:]]))
"""


# As torchrun does when its ranks have ended well, it then waits for the agents of the other nodes.
PARTING_AGENT = """
import os, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
until_seen = "import pathlib, sys, time\\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)"
rank = subprocess.Popen([sys.executable, "-c", until_seen, folder / "seen"], env=os.environ | {"RANK": "0"})
rank.wait()
(folder / "ready").write_text(str(rank.pid))
until = time.monotonic() + 60
while not (folder / "others are done").exists() and time.monotonic() < until:
    time.sleep(0.05)
"""


def start(folder, kind, agent=AGENT, **settings):
    env = os.environ | {"ALLRANKS_LAUNCH_ID": f"test-{folder}"}
    settings = {"launch_id": f"test-{folder}", "grace_seconds": 60, "say": lambda text: None} | settings
    return supervise([sys.executable, "-c", agent, str(folder), kind], env, log=folder / "agent.log", **settings)


@pytest.fixture
def ends_once_seen(tmp_path, monkeypatch):
    """The rank of PARTING_AGENT is there until the supervisor has seen it."""
    real = supervise_module.ranks_below

    def ranks_below(*words):
        found = real(*words)
        if found:
            (tmp_path / "seen").touch()
        return found

    monkeypatch.setattr(supervise_module, "ranks_below", ranks_below)


def when_ready(folder, action):
    """Call `action` from a thread once the rank runs: signals reach the main thread, which supervises."""

    def wait():
        while not (folder / "ready").exists() or not (folder / "ready").read_text():
            time.sleep(0.01)
        action()

    threading.Thread(target=wait, daemon=True).start()


def rank_is_dead(folder):
    pid = int((folder / "ready").read_text())
    try:
        process = psutil.Process(pid)
        process.wait(20)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        return not psutil.pid_exists(pid)
    return True


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [(signal.SIGINT, "SIGTERM"), (signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"), (signal.SIGHUP, "SIGTERM")],
)
def test_signals_reach_the_ranks_as_a_request_to_save(tmp_path, sent, arrives):
    when_ready(tmp_path, lambda: os.kill(os.getpid(), sent))
    ended = start(tmp_path, "good")
    assert (tmp_path / arrives).exists()
    assert (ended.returncode, ended.signal, ended.killed) == (75, sent, False)


@pytest.mark.usefixtures("ends_once_seen")
def test_a_node_whose_ranks_have_ended_waits_for_the_others_although_it_is_told_to_stop(tmp_path):
    """Its agent, were it ended now, would be missed by the other agents for minutes."""
    said = []

    def say(text):
        said.append(text)
        (tmp_path / "others are done").touch()

    when_ready(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended = start(tmp_path, "", agent=PARTING_AGENT, say=say)
    assert (ended.returncode, ended.signal, ended.killed) == (0, signal.SIGTERM, False)
    assert said == ["SIGTERM: the ranks of this node have ended already"]


@pytest.mark.usefixtures("ends_once_seen")
def test_an_agent_that_waits_for_one_that_has_gone_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("allranks.launch.node.supervise._PARTING_SECONDS", 0.5)
    ended = start(tmp_path, "", agent=PARTING_AGENT, parting=(tmp_path / "ready").exists)
    assert (ended.returncode, ended.signal, ended.killed) == (128 + signal.SIGTERM, None, False)


def test_the_grace_period_ends_everything(tmp_path):
    when_ready(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert start(tmp_path, "stubborn", grace_seconds=0.2).killed
    assert rank_is_dead(tmp_path)


def test_a_run_that_cannot_go_on_is_ended_at_once(tmp_path):
    def lost():
        return LOST if (tmp_path / "ready").exists() and (tmp_path / "ready").read_text() else None

    ended = start(tmp_path, "good", lost=lost)
    assert (ended.killed, ended.lost) == (True, LOST)
    assert rank_is_dead(tmp_path) and not (tmp_path / "SIGTERM").exists()


def test_the_agent_of_a_rank_that_has_died_may_say_so_before_the_end(tmp_path, monkeypatch):
    """The others feel the death first, as a broken connection."""
    monkeypatch.setattr("allranks.launch.node.supervise._LAST_WORDS_SECONDS", TIMEOUT_SECONDS)
    agent = "import sys, time; time.sleep(0.5); print('last words'); sys.exit(3)"
    settings = {"log": tmp_path / "agent.log", "launch_id": "none", "grace_seconds": 60, "num_ranks": 1}
    ended = supervise([sys.executable, "-c", agent], os.environ, lost=lambda: LOST, **settings)
    assert (tmp_path / "agent.log").read_text() == "last words\n" and ended.lost == LOST


def test_a_second_ctrl_c_ends_everything(tmp_path):
    def twice(text):
        os.kill(os.getpid(), signal.SIGINT)

    when_ready(tmp_path, lambda: os.kill(os.getpid(), signal.SIGINT))
    said = []
    # The first answer to the user provokes the second Ctrl-C.
    ended = start(tmp_path, "stubborn", say=lambda text: (said.append(text), len(said) == 1 and twice(text)))
    assert ended.killed and rank_is_dead(tmp_path)


def test_ranks_do_not_outlive_their_agent(tmp_path):
    def kill_agent():
        rank = psutil.Process(int((tmp_path / "ready").read_text()))
        rank.parent().parent().kill()

    when_ready(tmp_path, kill_agent)
    assert start(tmp_path, "stubborn").returncode == 128 + signal.SIGKILL
    assert rank_is_dead(tmp_path)


def test_nothing_outlives_a_killed_launcher_however_stubborn(tmp_path):
    launcher = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_supervise import start
start(Path(sys.argv[1]), "stubborn")
"""
    process = subprocess.Popen([sys.executable, "-c", launcher, str(tmp_path)])
    while not (tmp_path / "ready").exists() or not (tmp_path / "ready").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 4  # subreaper, agent, what it put in between, rank
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    env = dict(os.environ)
    supervise([sys.executable, "-c", "print('hello')"], env, log=tmp_path / "a.log", launch_id="x", grace_seconds=1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "a.log").read_text() == "hello\n"


def test_a_stopped_rank_is_reported_and_let_go_on_when_the_run_is_to_end(tmp_path):
    reported = []

    def describe(rank, pid, state, seconds):
        return rank_stopped(Who(0, rank), pid, state, seconds)

    def report(findings):
        first = bool(findings) and not reported
        reported.extend(findings)
        if first:
            os.kill(os.getpid(), signal.SIGINT)

    when_ready(tmp_path, lambda: os.kill(int((tmp_path / "ready").read_text()), signal.SIGSTOP))
    ended = start(tmp_path, "good", describe=describe, report=report, num_ranks=1)
    assert (ended.returncode, ended.killed) == (75, False)
    assert (tmp_path / "SIGTERM").exists()
    assert reported[0].code == "rank-stopped" and ended.stopped[0].who == Who(0, 0)


def test_a_stopped_rank_hears_of_a_stop_that_was_asked_of_another_node(tmp_path):
    when_ready(tmp_path, lambda: os.kill(int((tmp_path / "ready").read_text()), signal.SIGSTOP))

    def stopping():
        # As the training's own collectives would tell the rank, once it runs again.
        if (tmp_path / "ready").exists() and (pid := (tmp_path / "ready").read_text()):
            with contextlib.suppress(ProcessLookupError):  # asked again when it has heard, and ended
                os.kill(int(pid), signal.SIGTERM)
            return True
        return False

    ended = start(tmp_path, "good", describe=lambda *_: rank_stopped(Who(0, 0), 1, "T", 0), stopping=stopping)
    assert (ended.returncode, ended.killed) == (75, False)
