"""`allranks top` and `status` as programs: on a terminal, which they leave as it was, and without one."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
TABLE = {
    "version": 1,
    "run_id": "r1",
    "t": 1.0,
    "step": 4,
    "num_steps": 9,
    "nodes": [
        {"node": 0, "host": "h" * 18, "ranks": [{"rank": n, "phase": "train", "step": 4 + n % 2} for n in range(512)]}
    ],
}
COMMAND = [sys.executable, "-m", "allranks"]


def write(run: Path, **changes: object) -> Path:
    (run / "new").write_text(json.dumps({**TABLE, **changes}))
    (run / "new").replace(run / "live.json")
    return run


class Terminal:
    """A program on a terminal of its own, and what it has written there."""

    def __init__(self, *arguments: object, columns: int = 80) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(columns)
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.theirs = theirs
        self.written = b""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def until(self, text: bytes, seconds: float = 60.0) -> bytes:
        """What came up to `text`, and with it."""
        while text not in self.written:
            assert select.select([self.ours], [], [], seconds)[0], self.written
            self.written += os.read(self.ours, 65536)
        found, _, self.written = self.written.partition(text)
        return found + text

    def end(self) -> int:
        code = self.process.wait(60)
        assert termios.tcgetattr(self.theirs) == self.before
        os.close(self.theirs)
        os.close(self.ours)
        return code


def test_ctrl_c_ends_top_with_0_and_the_terminal_is_as_it_was(tmp_path: Path) -> None:
    terminal = Terminal("top", write(tmp_path))
    terminal.until(ENTER)
    shown = terminal.until(b"\x1b[J")
    assert all(len(line.replace(b"\x1b[K", b"").replace(b"\x1b[H", b"")) <= 88 for line in shown.split(b"\r\n"))
    assert b"0-511" in shown and shown.count(b"\r\n") < 24
    assert b"h" * 18 not in shown
    terminal.resize(120)  # where there is room for more
    terminal.until(b"h" * 18)
    os.write(terminal.ours, b"\x03")
    terminal.until(LEAVE)
    assert terminal.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_top_gives_the_screen_back(tmp_path: Path, number: int) -> None:
    terminal = Terminal("status", "--watch", write(tmp_path))
    terminal.until(b"\x1b[J")
    terminal.process.send_signal(number)
    terminal.until(LEAVE)
    assert terminal.end() == 128 + number


def test_top_ends_with_the_run_and_leaves_its_last_state(tmp_path: Path) -> None:
    terminal = Terminal("top", write(tmp_path))
    terminal.until(b"\x1b[J")
    write(tmp_path, ended={"exit_code": 75})
    terminal.until(LEAVE)
    assert b"step 4 of 9" in terminal.until(b"exit code 75: preempted")
    terminal.until(b"511")
    assert terminal.end() == 0


def test_without_a_terminal_it_writes_plain_lines_and_json(tmp_path: Path) -> None:
    write(tmp_path, ended={"exit_code": 0})
    done = subprocess.run([*COMMAND, "top", tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1 and "\x1b" not in done.stdout
    assert "step 4 of 9" in done.stdout and "exit code 0" in done.stdout
    done = subprocess.run([*COMMAND, "status", "--json", tmp_path], capture_output=True, text=True)
    assert len(json.loads(done.stdout)["nodes"][0]["ranks"]) == 512


def test_what_is_damaged_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "live.json").write_bytes(b'{"run_id": "\x1b[2J')
    done = subprocess.run([*COMMAND, "status", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "damaged" in done.stderr and "\x1b" not in done.stderr


def test_it_ends_when_nobody_reads_its_lines_any_more(tmp_path: Path) -> None:
    """As after `| head -1`: nothing new may come for hours, and no line be written that would fail."""
    with subprocess.Popen([*COMMAND, "top", write(tmp_path)], stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None and "step 4 of 9" in top.stdout.readline()
        top.stdout.close()
        assert top.wait(60) == 0


def test_a_run_that_is_removed_while_it_is_watched_is_told_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with subprocess.Popen([*COMMAND, "top", write(run)], stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None and "step 4 of 9" in top.stdout.readline()
        run.rename(tmp_path / "elsewhere")
        line = top.stdout.readline()
        assert "step 4 of 9" in line and f"{run} is no folder on this node" in line
        top.send_signal(signal.SIGINT)
        assert top.wait(60) == 0
