"""Deadlines that pass when a test says so."""

import sys
import time
from collections.abc import Callable

import pytest

from tests.unit.rendezvous.nodes import until


class Deadline:
    """Of nodes that wait for others. However slow the machine is, it passes after what it is to end, and not before."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def passes_once(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Wait for the condition; from then on it is so many seconds later."""
        until(condition)
        self._ahead = seconds


@pytest.fixture
def deadline(monkeypatch: pytest.MonkeyPatch) -> Deadline:
    """Nodes say at once for what they wait, and their deadlines are this one's."""
    waits = sys.modules["allranks.rendezvous.rendezvous"]  # by its name: `rendezvous` of the room is another
    passes = Deadline()
    monkeypatch.setattr(waits, "time", passes)
    for name in ("_TELL_FIRST_SECONDS", "_TELL_EVERY_SECONDS"):
        monkeypatch.setattr(waits, name, 0.1)
    return passes
