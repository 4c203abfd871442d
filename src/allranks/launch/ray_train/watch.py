"""The driver's part while the run goes on: show rank 0, hand signals on, end what cannot go on."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from allranks.doctor import causes
from allranks.doctor.ranks import code_of_signal
from allranks.exit_codes import DONE, PREEMPTED
from allranks.findings import Finding, Who, printed
from allranks.launch.node.live_table import LiveTableKeeper
from allranks.launch.ray_train.cluster import Cluster
from allranks.launch.ray_train.coordinator import FINAL_CODES, RankExit, Status
from allranks.launch.ray_train.plan import Fitted
from allranks.launch.ray_train.resources import Demand, awaited, busy_here
from allranks.launch.ray_train.worker import LONGEST_MESSAGE, described
from allranks.launch.stopped_ranks import StoppedRanks
from allranks.live.state import NodeState
from allranks.observe import say

_POLL_SECONDS = 0.2
_REMIND_SECONDS = 30.0
_LOOK_SECONDS = 1.0  # at the table of all ranks
# Workers hear of it within half a second, and Ray ends those of the others when one has failed. One that does not is
# held itself.
_ENDING_SECONDS = 60.0
# Once it runs the coordinator, on this machine, has never been seen to take a second.
_ANSWER_SECONDS = 60.0


@dataclass
class Watched:
    """How it ended. `stopped` says why the driver ended it before Ray did; `ends` are of the last attempt."""

    fitted: Fitted | None = None
    stopped: str = ""
    hang: Finding | None = None
    """Why it was ended, where its ranks did not go on."""
    signal: signal.Signals | None = None
    killed: bool = False
    exits: list[RankExit] = field(default_factory=list)
    failures: list[Finding] = field(default_factory=list)
    committed: int = 0


@dataclass
class Watch:
    """Watches one run. `received` are the signals to this process, as they come; `on_start` is called whenever all
    ranks have started; `keeper` is given what they do. Times are seconds."""

    coordinator: Any
    cluster: Cluster
    wanted: Demand
    received: Sequence[signal.Signals]
    start_timeout: float
    grace: float
    on_start: Callable[[Status], None]
    keeper: LiveTableKeeper
    _watched: Watched = field(default_factory=Watched)
    _waiting_since: float = math.inf
    _reminded: float = 0.0
    _deadline: float = math.inf
    _states: dict[int, NodeState] = field(default_factory=dict)
    _next_look: float = 0.0
    _attempt_started: int = 0
    _attempt_failed: int = 0
    _hung_attempt: int = 0
    _hung_since: float = 0.0
    _stopped: StoppedRanks = field(default_factory=lambda: StoppedRanks(None))

    def until_end(self, fitting: Any) -> Watched:
        """Until Ray has ended the run (the reference `fitting` is ready), or nothing more can come of it."""
        import ray

        watched = self._watched
        self._waiting_since = self._reminded = time.monotonic()
        if not self._coordinator_is_up():
            return watched
        while True:
            ready, _ = ray.wait([fitting], timeout=_POLL_SECONDS)
            status: Status = ray.get(self.coordinator.status.remote(), timeout=_ANSWER_SECONDS)
            self._tell(status)
            if ready:
                watched.fitted = _result(fitting)
                return watched
            if self.received and self._must_end(status):
                return watched
            if self._waits_in_vain(len(status.placements)):
                return watched
            if self.keeper.hang is not None and not self._starts_again(self.keeper.hang, status.attempt):
                watched.hang = self.keeper.hang
                return watched

    def _coordinator_is_up(self) -> bool:
        """Wait for its process to start, which takes as long as any other on a machine that does much else. False
        where the time of all workers is over, or somebody asks to end it."""
        import ray

        up = self.coordinator.is_up.remote()
        while not ray.wait([up], timeout=_POLL_SECONDS)[0]:
            if self.received:
                self._watched.signal = self.received[0]
                return False
            if self._waits_in_vain(num_started=0):
                return False
        ray.get(up)
        return True

    def _tell(self, status: Status) -> None:
        """Show what is new."""
        watched = self._watched
        for line in status.lines:
            say(line)
        watched.exits = [end for end in status.exits if end.attempt == status.attempt]
        self._stopped.update(() if status.attempt in status.failures else status.stopped)
        self._look(status)
        watched.failures = failed(status, status.attempt)
        watched.committed = status.committed
        if status.attempt in status.failures and self._attempt_failed < status.attempt:
            self._attempt_failed = status.attempt
            self._waiting_since = self._reminded = time.monotonic()
            more = f" (and {len(watched.failures) - 1} after it)" if len(watched.failures) > 1 else ""
            if not any(end.code in FINAL_CODES for end in watched.exits):
                say(f"attempt {status.attempt}: {watched.failures[0].what}{more}")
        if self._attempt_started < status.attempt and len(status.placements) == self.wanted.num_workers:
            self._attempt_started, self._waiting_since = status.attempt, math.inf
            if status.attempt > 1:
                say(f"attempt {status.attempt}: Ray has started the ranks again")
            self.on_start(status)

    def _look(self, status: Status) -> None:
        """Put what the workers say of their ranks into the table. Those that failed say nothing any more."""
        if status.attempt in status.failures or len(status.placements) < self.wanted.num_workers:
            self._states = {}
            self.keeper.forget()
            return
        for rank, message in status.states.items():
            with contextlib.suppress(ValueError):
                self._states[rank] = NodeState.from_message(message)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
            states, self._states = self._states, {}
            self.keeper.look(states)

    def _must_end(self, status: Status) -> bool:
        """Hand the first signal on to the ranks; True once they need no more time, or have had all of it."""
        import ray

        first = self.received[0]
        self._watched.signal = first
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + self.grace
            if not status.placements:
                return True  # nothing has started: there is nothing to save
            ray.get(self.coordinator.stop.remote())
            again = "; Ctrl-C again ends them at once" if first == signal.SIGINT else ""
            say(
                f"{first.name}: {len(status.placements)} rank(s) were asked to save a checkpoint and stop, within "
                f"{self.grace:.0f} s{again}"
            )
        if self.received.count(signal.SIGINT) > 1 or time.monotonic() > self._deadline:
            say("ending all ranks now; the newest complete checkpoint stays valid")
            self._watched.killed = True
        return self._watched.killed

    def _starts_again(self, hang: Finding, attempt: int) -> bool:
        """Have the ranks that hang ended, for Ray to start them again. False where that is not to be, or fails."""
        import ray

        if self.keeper.restarts is None:
            return False
        if self._hung_attempt != attempt:
            self._hung_attempt, self._hung_since = attempt, time.monotonic()
            say(printed(hang))
            say(f"on_hang: restart: attempt {attempt} is ended, for Ray to start the ranks again")
            ray.get(self.coordinator.end_hung.remote(attempt))
        return time.monotonic() - self._hung_since < _ENDING_SECONDS

    def _waits_in_vain(self, num_started: int) -> bool:
        """Whether Ray has had its time to start all workers."""
        now = time.monotonic()
        if now - self._waiting_since > self.start_timeout:
            self._watched.stopped = (
                f"Ray did not start all workers within {self.start_timeout:.0f} s (ray_start_timeout), "
                f"{num_started} of {self.wanted.num_workers} came: {self._awaited(num_started)}"
            )
            return True
        if self._waiting_since < math.inf and now - self._reminded > _REMIND_SECONDS:
            self._reminded = now
            say(f"waiting for Ray to start the workers: {self._awaited(num_started)}")
        return False

    def _awaited(self, num_started: int) -> str:
        return awaited(
            self.wanted,
            self.cluster.nodes(),
            self.cluster.free(),
            num_started=num_started,
            is_own=self.cluster.is_ours,
            busy=busy_here(),
        )


def failed(status: Status, attempt: int) -> list[Finding]:
    """What failed in an attempt, the first cause first: a rank that was killed, a worker that was lost, then errors in
    the order in which the coordinator heard of them; errors of a connection that another rank left come last. Before
    all of these, where it explains them: a rank that was stopped, and that the others waited for."""
    exits = [end for end in status.exits if end.attempt == attempt and end.code not in (DONE, PREEMPTED)]
    heard = {end.rank for end in exits}
    lost = [
        Finding(causes.NODE_LOST, text, who=Who(rank=rank))
        for rank, text in sorted(status.failures.get(attempt, {}).items())
        if rank not in heard
    ]
    killed = [failure_of(end) for end in exits if end.code < 0]
    errors = [failure_of(end) for end in exits if end.code >= 0]
    known = sorted([*killed, *lost, *errors], key=lambda one: causes.precedence(one.code))
    if known and (cause := StoppedRanks(None).cause(known[0], status.stopped)) is not None:
        return [cause, *known]
    return known


def failure_of(end: RankExit) -> Finding:
    """A rank that ended so."""
    code = end.cause or (code_of_signal(-end.code) if end.code < 0 else causes.code_of_error(end.message))
    return Finding(
        code,
        described(replace(end, log="")),
        who=Who(rank=end.rank, host=end.host),
        remedy=f"its log: {end.log}" if end.log and not end.is_shown else "",
        said=end.message[:LONGEST_MESSAGE],
    )


def _result(fitting: Any) -> Fitted:
    import ray

    try:
        fitted: Fitted = ray.get(fitting)
        return fitted
    except ray.exceptions.RayError as error:
        return Fitted(error=str(error))
