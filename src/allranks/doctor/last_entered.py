"""What ranks had entered last when they lost another one in a collective, as they wrote it down at their end.

Where ranks enter the same collective at the same place with different shapes, only this tells which of them differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allranks.doctor.attempt import Started
from allranks.listing import printable

# As evidence/in_program/allranks_answers.py names them.
_FILES = "logs/node-*/rank-*.entered.json"
_OFTEN = 2  # times that something has followed, after which what is done instead stands out
_MAX_BYTES = 10_000
_MAX_WORD = 200


@dataclass(frozen=True)
class LastEntered:
    """`entered` had followed on the same collective `times` times before, `usual` most often: `usual_times` times."""

    entered: str
    times: int
    usual: str
    usual_times: int

    @property
    def is_odd(self) -> bool:
        """Whether the rank did what it never did there, where it had always done something else."""
        return self.times == 0 and self.usual_times >= _OFTEN

    @property
    def is_usual(self) -> bool:
        return self.times >= _OFTEN and self.entered == self.usual


def last_entered(started: Started) -> dict[int, LastEntered]:
    """By rank, of this start, as far as their logs lie on this node's disk."""
    found = {}
    for path in sorted(started.run.path.glob(_FILES)):
        rank = path.name.removeprefix("rank-").partition(".")[0]
        if rank.isdecimal() and started.has_written(path) and (told := _read(path)) is not None:
            found[int(rank)] = told
    return found


def _read(path: Path) -> LastEntered | None:
    try:
        with path.open("rb") as file:
            said: Any = json.loads(file.read(_MAX_BYTES))
        words = [printable(said[key], _MAX_WORD) for key in ("entered", "usual")]
        return LastEntered(words[0], int(said["times"]), words[1], int(said["usual_times"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def who_differs(told: Mapping[int, LastEntered], aborted: int, lost: set[int]) -> tuple[list[int], str]:
    """Which of the `aborted` rank and those that `lost` it did not enter what it usually does, and how it shows; nobody
    where that is not known."""
    odd = sorted(rank for rank in lost & told.keys() if told[rank].is_odd)
    if odd and len(odd) <= len(lost) + 1 - len(odd):
        one = told[odd[0]]
        return odd, f"entered {one.entered}, where {one.usual} had come {one.usual_times} times before"
    if lost and all(rank in told and told[rank].is_usual for rank in lost):
        one = told[min(lost)]
        return [aborted], f"did not enter {one.entered}, which had come there {one.times} times before"
    return [], ""
