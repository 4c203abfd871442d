"""Agents on "nodes" that are all this machine: real processes, behind an `ssh` that only starts what it is told."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Like ssh and sshd: the words go to a login shell with an environment of its own, in the home directory.
SSH = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
host=$2
case $host in
    gone*) echo "ssh: connect to host $host port 22: Connection refused" >&2; exit 255 ;;
    locked*) echo "$host: Permission denied (publickey)." >&2; exit 255 ;;
    chatty*) echo "Welcome to $host"; printf 'no end of line: ' ;;
    lying*) echo '{"allranks_agent":1}'; echo 'rm -rf /'; exec sleep 100 ;;
    flooding*) echo '{"allranks_agent":1}'; exec cat /dev/zero ;;
esac
cd "$HOME" && exec env -i HOME="$HOME" PATH="$PATH" NODE="$host" OMP_NUM_THREADS=1 sh -c "$3"
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in first on PATH; returns the home directory of its nodes."""
    home = tmp_path / "home"
    for folder in (home, tmp_path / "bin"):
        folder.mkdir()
    program = tmp_path / "bin" / "ssh"
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def marked() -> Callable[[], list[int]]:
    """Process ids of all processes that carry this test's mark in their environment; `marked.mark` is the mark."""
    mark = f"ALLRANKS_TEST_MARK={os.getpid()}-{time.monotonic_ns()}"

    def find() -> list[int]:
        return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if mark in _environ(path)]

    find.mark = dict([mark.split("=")])  # type: ignore[attr-defined]
    return find


def _environ(path: Path) -> list[str]:
    try:
        state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
        return path.read_text(errors="replace").split("\0") if state != "Z" else []
    except OSError:
        return []


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    """Whether it comes true; tests wait for what must happen, and a failure takes the whole time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


PYTHON = sys.executable
