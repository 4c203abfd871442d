"""Where a rank was, by the frames of a traceback or of a crash: the newest of the user's code, else of ours."""

from __future__ import annotations

import re
from collections.abc import Sequence

from allranks.listing import printable

FRAME = re.compile(r'^\s+File "(.+)", line (\d+),? in (.+)$', re.MULTILINE)
"""File, line and function."""
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python3[.\d]*/|^<")
_OURS = re.compile(r"/allranks/")


def place_of(frames: Sequence[tuple[str, str, str]]) -> str:
    """As it is told; `frames` come newest first."""
    if (frame := _own(frames)) is None:
        return "an unknown place"
    file, line, function = frame
    return printable(f"{file}:{line} in {function}", 400)


def frame_of(traceback: str) -> str:
    """Of Python's traceback the line of that frame; "" where there is none."""
    frame = _own(FRAME.findall(traceback)[::-1])
    return "" if frame is None else '  File "{}", line {}, in {}'.format(*frame)


def _own(frames: Sequence[tuple[str, str, str]]) -> tuple[str, str, str] | None:
    for is_wanted in (lambda file: not _LIBRARY.search(file) and not _OURS.search(file), _OURS.search):
        for frame in frames:
            if is_wanted(frame[0]):
                return frame
    return None
