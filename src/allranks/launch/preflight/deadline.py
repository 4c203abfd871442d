"""Work that may never end, because a mount does not answer: nobody waits longer for it than its deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Beside(Generic[_T]):
    """`work`, done by a thread that the process does not wait for when it ends."""

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self._result: list[_T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._do, name="beside", daemon=True)
        self._thread.start()

    def _do(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error

    def result(self, seconds: float) -> _T | None:
        """What came of it; None where it has not ended `seconds` from now. Raises what it raised."""
        self._thread.join(max(0.0, seconds))
        if self._error is not None:
            raise self._error
        return self._result[0] if self._result else None
