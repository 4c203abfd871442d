"""Ranks watched many times as much as usual in some slots of the clock, and not at all in others.

What twenty times as much costs stands out of a machine's noise, and a twentieth of it is what the usual costs. For
that all of it has to be done so often: each look reads the events of the last second again, and looks at everything
that a look takes in, makes the table and writes it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque

SLOT_SECONDS = "BENCHMARK_SLOT_SECONDS"
DOSES = (0, 1, 5, 20)
"""Looks a second; a run has one."""
_SEED = 7
_EARLY = 0.001  # of the time between two looks
_NOTE_SECONDS, _READ_SECONDS = 0.1, 1.0


def dose_of(slot: int) -> int:
    """By the slot's number since 1970: each block of as many slots as doses has all of them, in an order of its own."""
    block, place = divmod(slot, len(DOSES))
    return random.Random(f"{_SEED} {block}").sample(DOSES, len(DOSES))[place]


def next_look(now: float, slot_seconds: float) -> tuple[float, bool]:
    """When to wake next, and whether to look then: the looks of a slot lie evenly in it, none at its ends."""
    slot = int(now / slot_seconds)
    num_looks = round(dose_of(slot) * slot_seconds)
    # Whose time has come; a wait may end some microseconds early.
    done = int((now / slot_seconds - slot) * num_looks + 0.5 + _EARLY)
    if done < num_looks:
        return (slot + (done + 0.5) / num_looks) * slot_seconds, True
    return (slot + 1) * slot_seconds, False


def watch_by_doses() -> None:
    """Make the launcher in this process watch so."""
    from allranks.launch.node import live, live_stacks
    from allranks.live import links
    from allranks.live.collect import NodeCollector
    from allranks.observe import EventFollower

    slot_seconds = float(os.environ[SLOT_SECONDS])
    usual_find_seconds = links._FIND_SECONDS

    def dose_now() -> int:
        return dose_of(int(time.time() / slot_seconds))

    class EachDose(live._EachSecond):
        def run(self) -> None:
            while not self._over.is_set():
                at, looks = next_look(time.time(), slot_seconds)
                self._over.wait(max(0.0, at - time.time()))
                if looks:
                    self._do()
            self._do()

        def _do(self) -> None:
            try:
                self._work()
            except Exception as error:
                self._fault(error)

    class ReadsAgain(NodeCollector):
        """Each look reads what was written within the last second, whoever has read it before."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._sizes: dict[int, deque[tuple[float, int]]] = {}
            threading.Thread(target=self._note_sizes, daemon=True).start()

        def _note_sizes(self) -> None:
            """In all slots alike."""
            while True:
                time.sleep(_NOTE_SECONDS)
                for rank in list(self._progress):
                    path = self._run.events(rank)
                    if path.is_file():
                        sizes = self._sizes.setdefault(rank, deque(maxlen=round(2 * _READ_SECONDS / _NOTE_SECONDS)))
                        sizes.append((time.monotonic(), path.stat().st_size))

        def collect(self, *args, **kwargs):
            links._FIND_SECONDS = usual_find_seconds / max(1, dose_now())
            for rank, sizes in list(self._sizes.items()):
                before = [size for t, size in list(sizes) if time.monotonic() - t >= _READ_SECONDS]
                if before:
                    self._followers[rank] = EventFollower(self._run.events(rank), before[-1])
            return super().collect(*args, **kwargs)

    take = live_stacks.RequestFolder.take
    live._EachSecond = EachDose
    live.NodeCollector = ReadsAgain
    live_stacks.RequestFolder.take = lambda folder: [one for _ in range(dose_now()) for one in take(folder)]
