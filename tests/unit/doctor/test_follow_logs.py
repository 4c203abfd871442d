"""Logs that go on are read as they grow."""

import signal
import subprocess
import sys
import time

import pytest

from allranks.doctor.follow import followed

HEALTHY = "".join(f"[rank0]: step {step}: loss 2.{step}\n" for step in range(50))
FULL = "[rank3]: OSError: [Errno 28] No space left on device: '/scratch/step-50'\n"


def test_a_cause_that_is_written_later_is_found(tmp_path):
    log = tmp_path / "run.log"
    log.write_text(HEALTHY)
    asked = 0

    def clock():
        nonlocal asked
        asked += 1
        if asked == 2:
            with log.open("a") as file:
                file.write(FULL)
        return time.monotonic()

    other = tmp_path / "other.log"
    other.write_text(FULL.replace("rank3", "rank1"))  # something is known at once, and is asked whether it stands
    told = followed([log, other], stands_seconds=0.01, clock=clock)
    assert told.is_known and told.cause is not None


@pytest.mark.parametrize(("text", "known"), [(HEALTHY + FULL, True), (HEALTHY, False)])
def test_ctrl_c_asks_for_the_answer_so_far(tmp_path, monkeypatch, text, known):
    """Where nothing fails the logs are read for ever, and a cause that has not stood yet is told."""
    log = tmp_path / "run.log"
    log.write_text(text)
    monkeypatch.setattr("allranks.doctor.follow.time.sleep", lambda seconds: signal.raise_signal(signal.SIGINT))
    assert followed([log], stands_seconds=1e9).is_known == known


# The command itself, as a terminal has it, whose Ctrl-C comes while it waits for the log to grow.
WAITING = """
import signal, sys, time
time.sleep = lambda seconds: signal.raise_signal(signal.SIGINT)
from allranks.cli.main import main
main()
"""


@pytest.mark.parametrize(("text", "code", "told"), [(HEALTHY + FULL, 0, "a disk is full"), (HEALTHY, 1, "unknown: ")])
def test_ctrl_c_asks_the_command_for_the_answer_so_far(tmp_path, text, code, told):
    log = tmp_path / "run.log"
    log.write_text(text)
    words = [sys.executable, "-c", WAITING, "doctor", "--follow", str(log)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (code, "") and told in done.stdout.splitlines()[0]
