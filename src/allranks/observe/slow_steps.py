"""Steps that take many times as long as those before them: said once when it begins, and once when it is over."""

import statistics
from collections import deque
from collections.abc import Sequence

from allranks.listing import si_bytes

# Batches of other lengths make a step two or three times as long; five times is another thing.
_TIMES = 5.0
# So much longer than usual, all slow steps together, before it is worth a line: a hiccup of a short step is not.
_WORTH_SECONDS = 1.0
# Usual steps that must be known before one can be called slow, that the median is of, and that end a slow stretch.
_KNOWN, _WINDOW, _OVER = 5, 50, 5


class SlowSteps:
    """Reads the time of each step. `nodes`: the node of each rank; only between nodes is the network worth a word."""

    def __init__(self, nodes: Sequence[int] = (0,)) -> None:
        self.nodes = nodes
        self._usual: deque[float] = deque(maxlen=_WINDOW)
        self._slow: list[float] = []  # seconds of the slow steps of this stretch
        self._longer = 0.0  # than the median, all of them together
        self._since_slow = 0  # usual steps since the last of them
        self._said = False

    def read(
        self,
        step: int,
        seconds: float,
        *,
        data_seconds: Sequence[float] = (),
        cpu_seconds: Sequence[float] = (),
        between_nodes_bytes: int | None = None,
    ) -> str | None:
        """What to tell the user of `step`; None nearly always.

        `data_seconds`, `cpu_seconds`: of each rank, how long it waited in the step for data, and for a CPU to run on.
        `between_nodes_bytes`: what a step sends between nodes, where that was counted.
        """
        if len(self._usual) < _KNOWN:
            self._usual.append(seconds)
            return None
        median = statistics.median(self._usual)
        if seconds <= _TIMES * median:
            self._usual.append(seconds)
            return self._usual_again(step, median)
        self._slow.append(seconds)
        self._longer += seconds - median
        self._since_slow = 0
        if self._said or self._longer < _WORTH_SECONDS:
            return None
        self._said = True
        why = _waiting(seconds - median, {"data": data_seconds, "a CPU": cpu_seconds})
        if not why:
            why = "no rank waited long for data or for a CPU" if data_seconds or cpu_seconds else ""
            why = "; ".join(filter(None, [why, self._network(seconds, between_nodes_bytes)]))
        return (
            f"step {step} took {_time(seconds)}, {seconds / median:.0f} times the median of the "
            f"{len(self._usual)} steps before ({_time(median)})" + (f": {why}" if why else "")
        )

    def _usual_again(self, step: int, median: float) -> str | None:
        self._since_slow += 1
        if not self._slow or self._since_slow < _OVER:
            return None
        said, count, longer = self._said, len(self._slow), self._longer
        self._slow, self._longer, self._said = [], 0.0, False
        if not said:
            return None
        slow = "1 step was slow" if count == 1 else f"{count} steps were slow"
        return f"steps take {_time(median)} again since step {step - _OVER + 1}: {slow}, {_time(longer)} lost"

    def _network(self, seconds: float, num_bytes: int | None) -> str:
        if len(set(self.nodes)) < 2:
            return ""
        if not num_bytes:
            return "look at the network between the nodes, and at the load of each node"
        return (
            f"{si_bytes(num_bytes)} cross between nodes in a step, here {si_bytes(num_bytes / seconds, 2)}/s: look at "
            "the network between them, and at the load of each node"
        )


def _waiting(longer: float, waits: dict[str, Sequence[float]]) -> str:
    """The rank that waited for at least half of what the step took longer, and for what; "" if none did."""
    worst = [(seconds, rank, what) for what, of_ranks in waits.items() for rank, seconds in enumerate(of_ranks)]
    if not worst:
        return ""
    seconds, rank, what = max(worst)
    return f"rank {rank} waited {_time(seconds)} of it for {what}" if seconds >= longer / 2 else ""


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
