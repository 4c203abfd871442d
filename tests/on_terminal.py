"""Run a command in a real terminal of so many columns, and answer what it asks."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CTRL_C, CTRL_D = "\x03", "\x04"
TIMEOUT_SECONDS = 120
FINGER_SECONDS = 10
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Shown:
    """What a terminal was sent: `raw` with its escape sequences, `lines` without them, as they stand there."""

    exit_code: int
    raw: str

    @property
    def lines(self) -> list[str]:
        return [line.rpartition("\r")[2] for line in _ESCAPE.sub("", self.raw).replace("\r\n", "\n").split("\n")]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def cut_words(lines: Sequence[str], columns: int) -> list[str]:
    """The lines of which the terminal's edge cuts through a word that would have fitted on a line of its own."""

    def is_cut(line: str) -> bool:
        start = line.rfind(" ", 0, columns + 1) + 1
        word, _, rest = line[start:].partition(" ")
        return bool(rest) or len(word) <= columns - 2  # two of indentation

    return [line for line in lines if len(line) > columns and is_cut(line)]


def open_terminal(columns: int) -> tuple[int, int]:
    """Our side and theirs of a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    return ours, theirs


def allranks_on_terminal(
    *words: str, columns: int, cwd: Path, answers: Sequence[tuple[str, str]] = (), env: dict[str, str] | None = None
) -> Shown:
    """`allranks WORDS…`; each of `answers` is typed when its prompt has appeared after the one before."""
    ours, theirs = open_terminal(columns)
    process = subprocess.Popen(
        # With the terminal as its own: Ctrl-C typed there is a SIGINT.
        ["setsid", "--ctty", sys.executable, "-m", "allranks", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env={
            **{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")},
            "TERM": "xterm",
            **(env or {}),
        },
    )
    os.close(theirs)
    try:
        raw = _talk(ours, list(answers))
        return Shown(process.wait(TIMEOUT_SECONDS), raw)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _talk(ours: int, answers: list[tuple[str, str]]) -> str:
    raw, seen, pressed = b"", 0, ""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], FINGER_SECONDS)[0]:
            if pressed == CTRL_C:  # as anybody would: one that comes just before a line is waited for wakes nobody
                os.write(ours, CTRL_C.encode())
            continue
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # the other side was closed
            return raw.decode()
        if not chunk:
            return raw.decode()
        raw += chunk
        while answers and (at := raw.find(answers[0][0].encode(), seen)) >= 0:
            prompt, answer = answers.pop(0)
            seen = at + len(prompt.encode())
            pressed = answer
            os.write(ours, answer.encode() if answer in (CTRL_C, CTRL_D) else f"{answer}\r".encode())
    raise AssertionError(f"no end after {TIMEOUT_SECONDS} s; shown so far:\n{raw.decode()}")
