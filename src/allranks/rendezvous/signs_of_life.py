"""When a node that says nothing is lost: not while steps are done, each of which takes the ranks of all nodes."""

from __future__ import annotations

import time
from collections.abc import Callable


class SignsOfLife:
    """Where only the nodes' own connection is blocked, training need not notice: that is told once, by `say`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._together = float("-inf")
        self._told: set[str] = set()

    def step_done(self, seconds_ago: float = 0.0) -> None:
        """The ranks of all nodes did a step together so long ago: all of them were alive then."""
        self._together = max(self._together, time.monotonic() - max(0.0, seconds_ago))

    def is_lost(self, name: str, heard: float, limit: float) -> bool:
        """Whether the node `name`, last `heard` of at that time, has given no sign of life for `limit` seconds."""
        now = time.monotonic()
        if now - heard <= limit:
            if name in self._told:
                self._told.discard(name)
                self._say(f"{name} is heard of again")
            return False
        if now - self._together > limit:
            return True
        if name not in self._told:
            self._told.add(name)
            self._say(
                f"warning: {name} has said nothing for {limit:.0f} s, but its ranks do their steps with those here: "
                "the run goes on. What they do is not shown meanwhile; look at what blocks the connection between the "
                "launchers"
            )
        return False
