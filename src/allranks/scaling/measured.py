"""What a run on some nodes came to, read from its record: tokens a second, and what a step's time went into."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

from allranks.errors import AllranksError
from allranks.json_types import is_a
from allranks.live.from_events import table_of
from allranks.observe import RunDir, read_events
from allranks.observe.events import CommunicationEvent, MemoryEvent, StepEvent

_TRIMMED = 0.1
"""Of the steps, at each end: what another program or a full page cache did to a few of them says nothing of scaling."""


@dataclass(frozen=True)
class Measured:
    """Means over the steps that count, `steps` of them: those after the warm-up but for the fastest and the slowest
    tenth. `all_seconds` is the mean with these.

    Of a step, `compute` is the usual rank's own work, `stragglers` what the rank that is busy longest works more, and
    `data` what that one waits for data. `waiting` is the rest: communication that nothing hides, and what Python does
    between steps. None where the ranks' own work is not known; on a GPU it is the layers' forward passes. `gpu`: its
    name, "" where nothing is computed on one.
    """

    nodes: int
    ranks: int
    on_gpu: bool
    steps: int
    tokens: float
    seconds: float
    all_seconds: float
    fastest: float
    slowest: float
    data: float
    compute: float | None
    stragglers: float | None
    waiting: float
    node_sends_bytes: float | None
    gpu: str = ""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def to_message(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Measured:
        """Raises ValueError for what is none."""
        kinds = get_type_hints(cls)
        values: dict[str, Any] = {each.name: message.get(each.name) for each in fields(cls)}
        for name, value in values.items():
            if not is_a(value, kinds[name]):
                raise ValueError(f"{name} is {value!r}")
        return cls(**values)


def measured(run: RunDir, nodes: int, *, warm_up: int) -> Measured:
    """The newest start in `run`, whose rank 0 was on this node, without its first `warm_up` steps.

    Ranks whose disks are not seen here count by the medians that node 0 was told. Raises AllranksError where no step
    was recorded.
    """
    table = table_of(run)
    by_rank = {rank: _steps(run, rank, table.run_id, warm_up) for rank in range(len(table.ranks))}
    first = by_rank.get(0)
    if not first:
        raise AllranksError(f"{run.events(0)}: no step after the {warm_up} of the warm-up was recorded there")
    counted = _without_extremes(first)
    parts = []
    for number in counted:
        # A rank's own figures of this step, else its usual ones.
        here = {rank: steps[number] for rank, steps in by_rank.items() if number in steps}
        far = [state for state in table.ranks if state.rank not in here]
        ranks = [(one.compute_seconds, one.data_seconds) for one in here.values()]
        parts.append(_parts([*ranks, *((one.median_compute_seconds, one.data_seconds or 0.0) for one in far)]))
    seconds = statistics.mean(event.seconds for event in counted.values())
    data = statistics.mean(waited for _, _, waited in parts)
    compute = stragglers = None
    if all(usual is not None for usual, _, _ in parts):
        compute = statistics.mean(usual or 0.0 for usual, _, _ in parts)
        stragglers = statistics.mean(more for _, more, _ in parts)
    every = [event.seconds for event in first.values()]
    on_gpu = any(isinstance(one, MemoryEvent) and one.device == "cuda" for one in _events(run, 0, table.run_id))
    return Measured(
        nodes=nodes,
        ranks=len(table.ranks),
        on_gpu=on_gpu,
        steps=len(counted),
        tokens=statistics.mean(float(event.tokens) for event in counted.values()),
        seconds=seconds,
        all_seconds=statistics.mean(every),
        fastest=min(every),
        slowest=max(every),
        data=data,
        compute=compute,
        stragglers=stragglers,
        waiting=seconds - data - (compute or 0.0) - (stragglers or 0.0),
        node_sends_bytes=_node_sends(run, table.run_id),
        gpu=_gpu_here() if on_gpu else "",
    )


def _parts(ranks: Sequence[tuple[float | None, float]]) -> tuple[float | None, float, float]:
    """Of the ranks' own work and waiting for data in a step: the usual work, what the rank that is busy longest works
    more, and what that one waits for data. It is the one that the others wait for."""
    known = [work for work, _ in ranks if work is not None]
    if not known:
        return None, 0.0, max(waited for _, waited in ranks)
    usual = statistics.median(known)
    work, waited = max(((work, waited) for work, waited in ranks if work is not None), key=sum)
    return min(work, usual), max(0.0, work - usual), waited


def _steps(run: RunDir, rank: int, run_id: str, warm_up: int) -> dict[int, StepEvent]:
    return {
        event.step: event
        for event in _events(run, rank, run_id)
        if isinstance(event, StepEvent) and event.step > warm_up
    }


def _events(run: RunDir, rank: int, run_id: str) -> list[Any]:
    return [event for event in read_events(run.events(rank)) if event.run == run_id]


def _without_extremes(steps: Mapping[int, StepEvent]) -> dict[int, StepEvent]:
    by_time = sorted(steps.values(), key=lambda event: event.seconds)
    cut = int(_TRIMMED * len(by_time))
    return {event.step: event for event in by_time[cut : len(by_time) - cut]}


def _node_sends(run: RunDir, run_id: str) -> float | None:
    """Of the node that sends most in a step; None where that was not counted, or there is one rank only."""
    counted = [event for event in _events(run, 0, run_id) if isinstance(event, CommunicationEvent) and event.counted]
    return float(max(counted[-1].node_sends_bytes)) if counted and counted[-1].node_sends_bytes else None


def _gpu_here() -> str:
    """The name of this node's first GPU, as its driver tells it; "" where it does not."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    return ""
