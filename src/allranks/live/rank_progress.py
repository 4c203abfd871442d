"""How far a rank has come, by its events as they come."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from allranks.live.state import RankState
from allranks.observe.events import CheckpointEvent, EvalEvent, Event, ExitEvent, PhaseEvent, StepEvent

TRAIN, EVALUATION, CHECKPOINT, EXPORT, DONE = "train", "evaluation", "checkpoint", "export", "done"
# Steps that the speed shown is of, and that the usual time of a step is the median of.
_SPEED_STEPS, _MEDIAN_STEPS = 10, 50
# Steps that a rank's own work is the median of, and that must be known before it says anything.
_WORK_STEPS, _FEWEST_WORK_STEPS = 10, 5


class RankProgress:
    """Reads the events of one rank; `state` is what it does by the newest of them. `num_restarts`: of starts before."""

    def __init__(self, rank: int, num_restarts: int = 0) -> None:
        self._num_restarts = num_restarts
        self.newest: float | None = None
        """When the newest event was written, by the node's clock."""
        self._full_speed: float | None = None
        self._recent: deque[tuple[int, float]] = deque(maxlen=_SPEED_STEPS)  # tokens, seconds
        self._seconds: deque[float] = deque(maxlen=_MEDIAN_STEPS)
        self._work: deque[float] = deque(maxlen=_WORK_STEPS)
        self._state = RankState(rank=rank)
        self._last: StepEvent | None = None  # the newest step, if `_state` does not have it yet

    @property
    def state(self) -> RankState:
        state = self._caught_up()
        all_done = state.step is not None and state.num_steps is not None and state.step >= state.num_steps
        if state.phase == TRAIN and all_done:
            return replace(state, phase=CHECKPOINT)  # it waits for the last save to be committed
        return state

    def read(self, events: Iterable[Event]) -> None:
        """Take in what the rank wrote since the last call."""
        for event in events:
            self.newest = event.t
            if isinstance(event, StepEvent):
                self._step(event)
            elif isinstance(event, PhaseEvent):
                self._enter(event)
            elif isinstance(event, ExitEvent):
                self._state = replace(self._caught_up(), exit_code=event.code)
            elif (isinstance(event, CheckpointEvent) and event.state == "started" and self._is_in(CHECKPOINT)) or (
                isinstance(event, EvalEvent) and self._is_in(EVALUATION)
            ):
                self._state = replace(self._caught_up(), phase=TRAIN, since=event.t)  # it goes on

    def _is_in(self, phase: str) -> bool:
        return self._caught_up().phase == phase

    def _enter(self, event: PhaseEvent) -> None:
        state = self._caught_up()
        if event.pid is not None and event.pid != state.pid:  # the first of this process: of a restart, too
            state = RankState(rank=state.rank, pid=event.pid, attempt=(state.attempt or self._num_restarts) + 1)
            self._recent.clear()
            self._seconds.clear()
            self._work.clear()
        self._full_speed = event.full_speed or self._full_speed
        self._state = replace(
            state, phase=event.phase, since=event.t, num_steps=event.num_steps or state.num_steps, exit_code=None
        )

    def _step(self, event: StepEvent) -> None:
        self._recent.append((event.tokens, event.seconds))
        self._seconds.append(event.seconds)
        if event.compute_seconds is not None:
            self._work.append(event.compute_seconds)
        self._last = event

    def _caught_up(self) -> RankState:
        """The state with the newest step in it: of many steps a second only the last is looked at."""
        event, self._last = self._last, None
        if event is None:
            return self._state
        tokens, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        speed = tokens / seconds if seconds > 0 else None
        work = event.compute_seconds
        is_work_known = len(self._work) >= _FEWEST_WORK_STEPS
        self._state = replace(
            self._state,
            phase=TRAIN,
            step=event.step,
            since=event.t,
            loss=event.loss,
            tokens_per_second=speed,
            mfu=speed / self._full_speed if speed is not None and self._full_speed else None,
            step_seconds=event.seconds,
            median_step_seconds=statistics.median(self._seconds),
            data_seconds=event.data_seconds,
            compute_seconds=work,
            wait_seconds=None if work is None else max(0.0, event.seconds - work),
            median_compute_seconds=statistics.median(self._work) if is_work_known else None,
            low_compute_seconds=sorted(self._work)[len(self._work) // 5] if is_work_known else None,
            memory_bytes=event.memory_bytes or None,
        )
        return self._state
