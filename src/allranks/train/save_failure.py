"""Why a checkpoint could not be saved: one error of what happened on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from allranks.checkpoint import commit
from allranks.disk import disk_told
from allranks.errors import AllranksError, CheckpointError, DiskError
from allranks.listing import few

_MAKE_ROOM = (
    "free some room there, lower save_total_limit, or move output_dir to a larger disk; then start the same command "
    "with --auto-resume-from-checkpoints true"
)


def save_told(checkpoint: Path, needed_bytes: int | None) -> AbstractContextManager[None]:
    """Within, what the disk refuses is told as a step that is not saved; `needed_bytes` is what it takes there."""
    doing = f"step {commit.step_of(checkpoint)} is not saved"
    return disk_told(doing, checkpoint, needed_bytes=needed_bytes, partial=checkpoint, remedy=_MAKE_ROOM)


def not_saved(checkpoint: Path, error: BaseException) -> AllranksError:
    """The error of a save that DCP gave up."""
    if isinstance(error, CheckpointException):
        failures = {rank: failure for rank, (failure, _) in error.failures.items()}
        if all(isinstance(failure, AllranksError) for failure in failures.values()):
            return of_ranks(failures)
    return CheckpointError(f"saving {checkpoint} failed: {reasons(error)}")


def of_ranks(failures: Mapping[int, Any]) -> AllranksError:
    """One error of several ranks' errors; what ranks of one host say of its disk is said once."""
    ranks: dict[object, list[int]] = {}
    for rank, failure in sorted(failures.items()):
        place = (failure.host, failure.errno) if isinstance(failure, DiskError) else rank
        ranks.setdefault(place, []).append(rank)
    told = [f"{'ranks' if len(of) > 1 else 'rank'} {few(of)}: {failures[of[0]]}" for of in ranks.values()]
    first = failures[min(failures)]
    if len(failures) == 1 and min(failures) == 0:
        error = first  # alone, or rank 0's own disk, which its message names
    elif all(isinstance(failure, DiskError) for failure in failures.values()):
        error = DiskError(few(told, between="; "), first.errno, first.host)
    else:
        error = CheckpointError(few(told, between="; "))
    error.ranks = tuple(sorted(failures))
    return error


def reasons(error: BaseException) -> str:
    """What went wrong on which rank. DCP's exception derives from BaseException and prints whole tracebacks."""
    if not isinstance(error, CheckpointException):
        return str(error)
    return few([f"rank {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items())], between="; ")
