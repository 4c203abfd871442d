"""A program that ends well although its loss is no number any more: only what its ranks printed tells it."""

from __future__ import annotations

import re
from pathlib import Path

from allranks.doctor.attempt import Started
from allranks.doctor.ended_well import SPOILT
from allranks.doctor.read_logs import diagnosis_of_text
from allranks.listing import printable

_TAIL_BYTES = 2**20
# Only where one is there are the rules loaded, which takes a second.
_NOT_FINITE = re.compile(rb"(?i)\b(?:nan|inf)\b")
_LONGEST = 200


def spoilt_loss(started: Started) -> str:
    """A warning of the loss that was printed last, where it is not finite; "" for one that is, or that nobody printed.

    Rank 0 prints it, or the last rank, as Megatron-LM does.
    """
    for rank in dict.fromkeys((0, started.world_size - 1)):
        log = started.run.log(started.node, rank)
        tail = _tail(log, started.log_start(log))
        if not _NOT_FINITE.search(tail):
            continue
        told = diagnosis_of_text(tail)
        if told.cause == SPOILT and told.evidence:
            line = printable(told.evidence[0].text.strip(), _LONGEST)
            return (
                f"warning: the loss that rank {rank} prints is not finite: {line}\n  the program ended with exit code "
                f"0 all the same; what it saved after that is spoilt: allranks doctor {started.run.path}"
            )
    return ""


def _tail(log: Path, start: int) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(max(start, file.seek(0, 2) - _TAIL_BYTES))
            return file.read(_TAIL_BYTES)
    except OSError:
        return b""
