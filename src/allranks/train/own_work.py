"""How much of a step a rank worked itself, without what it waited in collectives for others."""

from __future__ import annotations

from pathlib import Path

# The main thread's nanoseconds on a CPU, and of waiting for one (Documentation/scheduler/sched-stats.rst).
_SCHEDSTAT = Path("/proc/self/schedstat")


class OwnWork:
    """Between `begin` and `end`, the seconds in which the main thread ran or wanted to.

    A thread that waits in a collective sleeps; one that is held back, by other programs or by a limit of its cgroup,
    wants to run. Forward and backward passes are made by the main thread on a CPU, whatever the strategy. It knows
    nothing of a GPU, where that thread only hands out the work; nor where the kernel does not tell.
    """

    def __init__(self, *, on_gpu: bool = False) -> None:
        self._is_known = not on_gpu
        self._began: float | None = None

    def begin(self) -> None:
        self._began = _seconds() if self._is_known else None

    def end(self) -> float | None:
        """Seconds since `begin`; None where they are not known."""
        now = _seconds() if self._began is not None else None
        return None if now is None or self._began is None else now - self._began


def _seconds() -> float | None:
    try:
        running, waiting, *_ = _SCHEDSTAT.read_text().split()
        return (int(running) + int(waiting)) / 1e9
    except (OSError, ValueError):
        return None
