"""Where the training loop makes the host wait for the GPU."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.parts.part import Place, Row
from benchmarks.syncs import config_to_watch, syncs

_STEPS = 6
_SHOWN = 8


def run(place: Place) -> Iterator[Row]:
    found = syncs(config_to_watch(place.scratch, _STEPS))
    total = sum(found.values())
    yield Row(f"waits in {_STEPS} steps", str(total), "0", total == 0)
    for (file, line), count in found.most_common(_SHOWN):
        yield Row(f"{file}:{line}", f"{count} x")
