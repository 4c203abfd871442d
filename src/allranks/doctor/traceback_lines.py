"""The part of a traceback that says where an error came from, for a terminal; the whole is in the rank's log."""

from __future__ import annotations

import re
from itertools import pairwise

_FRAME = re.compile(r'^\s+File ".*", line \d+')
_LIBRARY = re.compile(r'File "(?:[^"]*/(?:site|dist)-packages/|[^"]*/lib/python3[.\d]*/|<)')
_MARKS = re.compile(r"^[\s^~]*$")
_FRAMES = 4


def where_it_failed(traceback: str) -> list[str]:
    """The newest frames with their lines of code, and of older ones the newest that is of no library. Of errors that
    follow from each other, those of the last."""
    lines = [line.rstrip() for line in traceback.splitlines() if not _MARKS.match(line)]
    starts = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    ends = [after for _, after in pairwise(starts)] + [starts[-1] + 2] if starts else []
    frames = [lines[start : min(end, start + 2)] for start, end in zip(starts, ends, strict=True)]
    frames = [[line for number, line in enumerate(frame) if number == 0 or line.startswith("    ")] for frame in frames]
    shown = frames[-_FRAMES:]
    if shown and all(_LIBRARY.search(frame[0]) for frame in shown):
        shown = [frame for frame in frames if not _LIBRARY.search(frame[0])][-1:] + shown
    return [line.removeprefix("  ") for frame in shown for line in frame]
