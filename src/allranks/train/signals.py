"""SIGTERM and SIGUSR1: finish the step, save, exit 75."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Remembers that a signal asked for a stop; `.name` is the signal's, or None. Handlers live as long as it is used
    as a context manager, so that outside of the loop the signals end the process as they always do."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
