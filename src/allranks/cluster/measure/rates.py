"""At which rates one device does what a step is made of; run in a child, which may hang or die without harm.

Each is measured in several turns, and the median counts: what disturbs a machine for a second spoils a part of many
measurements, and none of them as a whole. What is to be measured with caches that hold nothing of it comes after a walk
through more memory than they have. On a CPU time is that of the main thread on a core, which works as long as
its helpers do: what other programs take from it is none of the machine's rates.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from allranks.cluster.measure.pieces import FRESH_BYTES, Piece, alone, of_sizes

_TURN_SECONDS, _MOST_REPEATS = 12.0, 20
_WALK_BYTES = 2**28

_Pieces = Mapping[str, Mapping[int, Piece]]
"""By what a plan calls the rate, and by size."""


def measure_rates(device: Any, seconds: float, tell: Callable[..., None]) -> None:
    """Tell all rates; `seconds` for all of them together."""
    pairs, others = dict(of_sizes(device)), dict(alone(device))
    taken, spread = _in_turns({**pairs, **others}, device, seconds)

    def rate(name: str, size: int, piece: Piece) -> float:
        spent, (start, times) = taken[name, size], piece.start
        return piece.amount / max(spent - times * taken.get((start, 0), 0.0), spent / 2)

    tell(**{name: [(float(size), rate(name, size, work)) for size, work in of.items()] for name, of in pairs.items()})
    tell(**{name: 1 / rate(name, 0, others[name][0]) for name in ("kernel_seconds", "call_seconds")})
    tell(optimizer=rate("optimizer", 0, others["optimizer"][0]), spread=spread)
    if "cold" in others:
        tell(cold=rate("cold", 0, others["cold"][0]))
    if "fresh" in others:
        tell(fresh_seconds=max(taken["fresh", 0] - taken["kept", 0], 0.0) / FRESH_BYTES)


def _in_turns(pieces: _Pieces, device: Any, seconds: float) -> tuple[dict[tuple[str, int], float], float]:
    """The median of all runs of each, whose tensors are there only in its turns; and by which part of the usual a
    piece took longer in the slowest turn than in the quickest."""
    turns: list[dict[tuple[str, int], list[float]]] = []
    num_turns = max(1, round(seconds / _TURN_SECONDS))
    each = seconds / sum(map(len, pieces.values())) / num_turns
    for _ in range(num_turns):
        turns.append(
            {(name, size): _times(one, device, each) for name, of in pieces.items() for size, one in of.items()}
        )
    usual = {of: max(statistics.median(time for turn in turns for time in turn[of]), 1e-9) for of in turns[0]}
    slow = [statistics.median(statistics.median(turn[of]) / usual[of] for of in usual) for turn in turns]
    return usual, max(slow) - min(slow)


def _times(piece: Piece, device: Any, budget: float) -> list[float]:
    """Seconds of as many runs as the budget has room for, after one that warms it."""
    import torch

    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.thread_time
    parts = piece.make()

    def seconds_of(part: Callable[[], Any]) -> float:
        if piece.is_cold:
            _walk().sum()
        begun = clock()
        part()
        if on_gpu:
            torch.cuda.synchronize(device)
        return clock() - begun

    for part in parts:
        seconds_of(part)
    times: list[float] = []
    end = time.perf_counter() + budget
    while not times or (len(times) < _MOST_REPEATS and time.perf_counter() < end):
        times.append(sum(map(seconds_of, parts)))
    return times


@lru_cache(maxsize=1)
def _walk() -> Any:
    """What a CPU's caches hold after it has been read: themselves, and little else."""
    import torch

    return torch.ones(_WALK_BYTES // 4)
