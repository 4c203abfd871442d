"""Terminals and pipes that go away while somebody writes to them."""

import io
import os
import pty
import subprocess
import sys

import pytest

from allranks.observe import EventLog, Progress, say
from allranks.observe.events import StepEvent


@pytest.fixture
def closed_terminal():
    """A terminal whose window was closed, as a text stream: writing to it fails with EIO."""
    ours, theirs = pty.openpty()
    stream = open(theirs, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (a descriptor; closed below)
    assert stream.isatty()
    os.close(ours)
    with pytest.raises(OSError):
        os.write(stream.fileno(), b"lost")
    yield stream
    stream.close()


def test_a_line_to_a_closed_terminal_is_lost(closed_terminal):
    say("lost", file=closed_terminal)
    # Somebody who does not know of `say`, such as a library, is spared too.
    print("lost too", file=closed_terminal, flush=True)


def test_a_line_to_a_pipe_that_nobody_reads_is_lost():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        say("lost", file=stream)


def test_a_line_to_a_closed_file_is_lost():
    file = io.StringIO()
    file.close()
    say("lost", file=file)


def test_characters_that_the_terminal_does_not_have_are_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    say("done …", file=stream)
    assert raw.getvalue() == b"done \\u2026\n"


def test_progress_goes_on_without_a_display(closed_terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as stream, Progress(3, file=stream) as progress:  # noqa: PTH123
        progress.update(1, loss=1.0, seconds=1.0)
        os.close(ours)
        progress._drawn = 0.0  # a redraw is due
        progress.update(2, loss=1.0, seconds=1.0)
        progress.note("a checkpoint")
        progress.update(3, loss=1.0, seconds=1.0)
    with Progress(1, file=closed_terminal) as progress:
        progress.update(1, loss=1.0, seconds=1.0)


def test_plain_progress_into_a_pipe_that_nobody_reads():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, Progress(2, file=stream) as progress:
        progress.update(1, loss=1.0, seconds=1.0)
        progress.update(2, loss=1.0, seconds=1.0)


WRITER = """
import os, sys
from allranks.launch.node.terminal import terminal_path
from allranks.observe import say, settle_output
from allranks.observe.events import StepEvent
with terminal_path() as path:
    print("on a terminal:", os.isatty(1))
    print("buffered", end="")
    sys.stdin.buffer.readline()  # now the terminal is gone
    say("lost")
print("buffered again", end="")
settle_output()
sys.exit(75)
"""


@pytest.mark.parametrize("say_something", [True, False])
def test_the_exit_code_survives_the_terminal(say_something):
    ours, theirs = pty.openpty()
    code = WRITER if say_something else WRITER.replace('say("lost")', "pass")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=theirs, stderr=pipe, text=True, env=env)
    os.close(theirs)
    assert b"on a terminal: True" in os.read(ours, 100)
    os.close(ours)
    _, errors = process.communicate("\n", timeout=60)
    assert process.returncode == 75 and not errors, errors


def test_a_record_that_cannot_be_written_is_told_to_nobody(tmp_path, closed_terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", closed_terminal)
    log = EventLog(tmp_path / "events.jsonl", 0)
    os.close(log._fd)
    log._fd = os.open("/dev/full", os.O_WRONLY)
    log.write(StepEvent())
    log.close()
