"""The end of a log, as far as it helps in a message."""

import re
from pathlib import Path

_LINES = 15
_MOST_BYTES = 2**22  # a program may print gigabytes; what ended it is told at the end
# What faulthandler writes of a signal: each thread's stack, the one that answers us (evidence/in_program) among them.
_CRASH = "Fatal Python error: "
_OUR_THREAD = re.compile(r"^Thread 0x\w+.*\n(?:  File \".*/allranks_answers\.py\".*\n)+\n?", re.MULTILINE)
_EXTENSIONS = re.compile(r"^Extension modules: .*\n?", re.MULTILINE)
TRACEBACK, _REPORT = "Traceback (most recent call last):", "ChildFailedError:"


def read_from(path: Path, start: int = 0) -> str:
    """The end of what a log holds from byte `start` on; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, file.seek(0, 2) - _MOST_BYTES))
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def last_lines(text: str) -> list[str]:
    """The last lines that are not empty; torchrun's own report only where there is nothing else. Of a crash in compiled
    code the program's stacks alone."""
    if (crash := text.rfind(_CRASH)) >= 0:
        return _filled(_EXTENSIONS.sub("", _OUR_THREAD.sub("", text[crash:])))[:_LINES]
    lines = _filled(_without_torchruns_report(text)) or _filled(text)
    return lines[-_LINES:]


def _without_torchruns_report(text: str) -> str:
    """It ends the log: up to 40 lines that say of each rank no more than its exit code."""
    report = text.rfind(_REPORT)
    if report < 0:
        return text
    start = text.rfind(TRACEBACK, 0, report)
    if start < 0 or "raise ChildFailedError" not in text[start:report]:  # that traceback is a rank's
        start = text.rfind("\n", 0, report) + 1
    return text[:start]


def _filled(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
