"""Commands of the demo: failures say which and why, and no process outlives them."""

import os
import sys

import pytest

from allranks.demo import commands
from allranks.demo.commands import Command, run
from allranks.errors import AllranksError
from tests.patience import await_end


def _python(tmp_path, title, code):
    return Command(title, ("python", "-c", code), tmp_path / f"{title}.log")


def test_all_commands_run_at_the_same_time(tmp_path):
    code = """
import pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.touch()
while not other.exists():
    time.sleep(0.01)
"""
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    pair = [
        Command("a", ("python", "-c", code, *paths), tmp_path / "a.log"),
        Command("b", ("python", "-c", code, *reversed(paths)), tmp_path / "b.log"),
    ]
    run(pair, timeout_seconds=60)


def test_a_failure_names_the_command_and_shows_the_end_of_its_log(tmp_path):
    code = "for i in range(100): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(AllranksError) as caught:
        run([_python(tmp_path, "good", ""), _python(tmp_path, "bad", code)])
    message = str(caught.value)
    assert "bad ended with exit code 3, expected 0" in message
    assert "line 99" in message
    assert "line 10\n" not in message
    assert "good" not in message


def test_an_unexpected_success_is_a_failure(tmp_path):
    with pytest.raises(AllranksError, match="exit code 0, expected 75"):
        run([_python(tmp_path, "quick", "")], expected=75)


def test_a_deadline_ends_what_hangs(tmp_path):
    with pytest.raises(AllranksError, match="hangs was still running"):
        run([_python(tmp_path, "hangs", "import time; time.sleep(600)")], timeout_seconds=0.5)


def test_no_process_is_left_behind_by_an_interrupt(tmp_path, monkeypatch):
    """A child's own child in its own session, which ignores being asked, dies too."""
    grandchild = (
        "import signal, time, pathlib, os; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    child = (
        "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True).wait()"
    )

    def interrupt(processes):
        pid_file = tmp_path / "pid"
        if pid_file.exists() and pid_file.read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_STOP_SECONDS", 0.5)
    with pytest.raises(KeyboardInterrupt):
        run([_python(tmp_path, "parent", child)], while_running=interrupt)
    await_end(int((tmp_path / "pid").read_text()))


def test_a_command_is_shown_as_one_types_it(tmp_path):
    command = Command("x", ("allranks", "train", "a b.yaml"), tmp_path / "log", {"OMP_NUM_THREADS": "1"})
    assert command.as_typed == "OMP_NUM_THREADS=1 allranks train 'a b.yaml'"
    assert command.argv == [sys.executable, "-m", "allranks", "train", "a b.yaml"]


def test_env_reaches_the_command(tmp_path):
    command = Command("x", ("python", "-c", "import os; print(os.environ['A_B'])"), tmp_path / "log", {"A_B": "yes"})
    run([command])
    assert (tmp_path / "log").read_text() == "yes" + os.linesep
