"""What ranks had entered last when they lost another one in a collective, as they wrote it down at their end.

Where ranks enter the same collective at the same place with different shapes, only this tells which of them differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from allranks.doctor.attempt import Started
from allranks.doctor.of_rank import LastEntered, entered_from

# As evidence/in_program/allranks_answers.py names them.
_FILES = "logs/node-*/rank-*.entered.json"
_OFTEN = 2  # times that something has followed, after which what is done instead stands out
_MAX_BYTES = 10_000


def last_entered(started: Started) -> dict[int, LastEntered]:
    """By rank, of this start, as far as their logs lie on this node's disk, or other nodes have told it."""
    found = {one.rank: one.entered for one in started.others if one.entered is not None}
    for path in sorted(started.run.path.glob(_FILES)):
        rank = path.name.removeprefix("rank-").partition(".")[0]
        if rank.isdecimal() and started.has_written(path) and (told := _read(path)) is not None:
            found[int(rank)] = told
    return found


def _read(path: Path) -> LastEntered | None:
    try:
        with path.open("rb") as file:
            return entered_from(json.loads(file.read(_MAX_BYTES)))
    except (OSError, ValueError, RecursionError):
        return None


def who_differs(
    told: Mapping[int, LastEntered], aborted: int, lost: set[int], num_ranks: int | None = None
) -> tuple[list[int], str]:
    """Which of the `aborted` rank and those that `lost` it did not enter what it usually does, and how it shows; nobody
    where that is not known, as where not all of `num_ranks` are."""
    odd = sorted(rank for rank in lost & told.keys() if _is_odd(told[rank]))
    if odd and len(odd) <= len(lost) + 1 - len(odd):
        one = told[odd[0]]
        return odd, f"entered {one.entered}, where {one.usual} had come {one.usual_times} times before"
    are_all = num_ranks is None or len(lost | {aborted}) >= num_ranks
    if lost and are_all and all(rank in told and _is_usual(told[rank]) for rank in lost):
        one = told[min(lost)]
        return [aborted], f"did not enter {one.entered}, which had come there {one.times} times before"
    return [], ""


def _is_odd(one: LastEntered) -> bool:
    """Whether the rank did what it never did there, where it had always done something else."""
    return one.times == 0 and one.usual_times >= _OFTEN


def _is_usual(one: LastEntered) -> bool:
    return one.times >= _OFTEN and one.entered == one.usual
