"""Python stacks of anyone's program, in which nothing of ours answers: by py-spy, where it is installed and allowed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from allranks.evidence.python_stacks import Frame, Thread
from allranks.evidence.rank_memory import CannotAsk
from allranks.parent import die_with_parent

_SECONDS = 3.0
_MAX_FRAMES = 100


def py_spy_threads(pid: int) -> list[Thread]:
    """Raises CannotAsk where py-spy is missing, or may not look at the process."""
    beside = Path(sys.executable).with_name("py-spy")
    tool = str(beside) if beside.is_file() else shutil.which("py-spy")
    if tool is None:
        raise CannotAsk(
            "nothing of ours is in it, and py-spy, which can look into it all the same, is not installed here"
        )
    try:
        # It reads without stopping the process, which a hanging one does not notice anyway.
        told = subprocess.run(
            [tool, "dump", "--nonblocking", "--json", "--pid", str(pid)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            preexec_fn=die_with_parent,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotAsk(f"py-spy gave no answer: {error}") from None
    if told.returncode:
        last = told.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise CannotAsk(f"py-spy may not look into it: {last[0][:200]}")
    return threads_of_py_spy(told.stdout)


def threads_of_py_spy(text: bytes) -> list[Thread]:
    """What `py-spy dump --json` writes; raises CannotAsk where it is something else."""
    try:
        given = json.loads(text)
        threads = [
            Thread(
                tuple(
                    Frame(str(frame["filename"]), int(frame["line"]), str(frame["name"]))
                    for frame in one["frames"][:_MAX_FRAMES]
                ),
                str(one.get("thread_name") or ""),
                one.get("thread_name") == "MainThread",
            )
            for one in given
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CannotAsk(f"py-spy wrote what is no list of threads: {error}") from None
    return sorted(threads, key=lambda thread: not thread.trains)
