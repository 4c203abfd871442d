"""At which rates one device does what a step is made of; run in a child, which may hang or die without harm.

Each is measured in several turns, and the median counts: what disturbs a machine for a second spoils a part of many
measurements, and none of them as a whole. On a CPU time is that of the main thread on a core, which works as long as
its helpers do: what other programs take from it is none of the machine's rates.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from allranks.cluster.measure.pieces import FRESH_BYTES, Piece, Run, alone, of_sizes

_TURN_SECONDS, _MOST_REPEATS = 12.0, 20

_Pieces = Mapping[str, Mapping[int, Piece]]
"""By what a plan calls the rate, and by size."""


def measure_rates(device: Any, seconds: float, tell: Callable[..., None]) -> None:
    """Tell all rates; `seconds` for all of them together."""
    pairs, others = dict(of_sizes(device)), dict(alone(device))
    taken = _in_turns({**pairs, **others}, device, seconds)

    def rate(name: str, size: int, piece: Piece) -> float:
        spent, (start, times) = taken[name, size], piece.start
        return piece.amount / max(spent - times * taken.get((start, 0), 0.0), spent / 2)

    tell(**{name: [(float(size), rate(name, size, work)) for size, work in of.items()] for name, of in pairs.items()})
    tell(**{name: 1 / rate(name, 0, others[name][0]) for name in ("kernel_seconds", "call_seconds")})
    tell(optimizer=rate("optimizer", 0, others["optimizer"][0]))
    if "fresh" in others:
        tell(fresh_seconds=max(taken["fresh", 0] - taken["kept", 0], 0.0) / FRESH_BYTES)


def _in_turns(pieces: _Pieces, device: Any, seconds: float) -> dict[tuple[str, int], float]:
    """The median of all runs of each, whose tensors are there only in its turns."""
    times: dict[tuple[str, int], list[float]] = {}
    num_turns = max(1, round(seconds / _TURN_SECONDS))
    each = seconds / sum(map(len, pieces.values())) / num_turns
    for _ in range(num_turns):
        for name, sizes in pieces.items():
            for size, piece in sizes.items():
                times.setdefault((name, size), []).extend(_times(piece.make(), device, each))
    return {of: max(statistics.median(found), 1e-9) for of, found in times.items()}


def _times(run: Run, device: Any, budget: float) -> list[float]:
    """Seconds of as many runs as the budget has room for, after one that warms it."""
    import torch

    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.thread_time
    run()
    if on_gpu:
        torch.cuda.synchronize(device)
    times: list[float] = []
    end = time.perf_counter() + budget
    while not times or (len(times) < _MOST_REPEATS and time.perf_counter() < end):
        begun = clock()
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(clock() - begun)
    return times
