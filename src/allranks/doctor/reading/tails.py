"""The lines at the end of a log, whatever they say."""

from __future__ import annotations

from collections.abc import Iterator

from allranks.doctor.reading.lines import Line, decoded
from allranks.doctor.reading.prefixes import without_prefixes
from allranks.doctor.reading.scanner import Read

_MOST_BYTES = 2000  # of a line


def tail_of(read: Read) -> Iterator[Line]:
    """The last lines of it, as far as they were kept."""
    source = read.source
    for number, written in enumerate(read.tail.removesuffix(b"\n").split(b"\n"), read.tail_from):
        for raw in filter(None, written.splitlines()):  # what was written over parts it, and counts as one line
            told = without_prefixes(decoded(raw[:_MOST_BYTES]))
            rank = told.rank if told.rank is not None else source.rank
            yield Line(
                source.name,
                number,
                told.text,
                rank,
                told.node or source.node,
                told.seconds,
                "",
                told.level,
                told.is_utc,
            )
