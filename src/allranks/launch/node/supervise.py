"""Run a launcher as a child and watch over it: signals reach the ranks, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from allranks.cluster.memory import killed_since, memory_kills
from allranks.doctor.attempt import Ended
from allranks.findings import Finding
from allranks.launch.node.end_of import end_of
from allranks.launch.node.ranks import kill_leftovers, ranks_below
from allranks.launch.node.stopped_ranks import Describe, StoppedRanks, rank_number
from allranks.launch.node.subreaper import under_subreaper
from allranks.observe import say

# What each signal to the launcher becomes for the ranks. Both mean: finish the step, save, exit 75.
FORWARDED = {
    signal.SIGINT: signal.SIGTERM,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
}
_POLL_SECONDS = 0.1
_LAST_WORDS_SECONDS = 1.5
_LOOK_SECONDS = 0.5  # looking for ranks reads all of /proc
_STATES_SECONDS = 1.0  # reading the states of ranks reads a file of each
# Agents that wait for each other at their end do so within a second; torchrun's gives up after 300.
_PARTING_SECONDS = 10.0


def supervise(
    command: list[str],
    env: Mapping[str, str],
    *,
    log: Path,
    launch_id: str,
    grace_seconds: float,
    num_ranks: int = 0,
    keep_open: Sequence[int] = (),
    lost: Callable[[], Finding | None] = lambda: None,
    parting: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = say,
    describe: Describe | None = None,
    report: Callable[[tuple[Finding, ...]], None] = lambda findings: None,
    asked: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
    seen: Callable[[Sequence[psutil.Process]], None] = lambda ranks: None,
) -> Ended:
    """Run `command` (a launcher, here called the agent), its output appended to `log`, until it and its ranks ended.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 go to the ranks, not to the agent, which would kill them: they get the
    time to save. After a second SIGINT, or `grace_seconds` after the first signal, everything is killed; and as soon
    as `lost`, which is asked all the time, says why the run cannot go on, unless one of our `num_ranks` has just died:
    then the agent may tell more about that. An agent whose ranks have ended is waiting for the agents of the other
    nodes; it is ended when `parting` says that one of those has gone. Should this process itself be killed, the
    subreaper that holds the agent ends everything. The agent inherits the descriptors `keep_open`.

    With `describe`, ranks that do not run are looked for, and told to `report` every time. Those that a signal has
    stopped are let go on when the run is to end: a signal came here, which `asked` is told, or, says `stopping`, to
    another node. `seen` is told which ranks there are, every time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    received: list[signal.Signals] = []
    kills = memory_kills()
    with remember_signals(received), log.open("ab") as output:
        agent = subprocess.Popen(
            under_subreaper(command, os.getpid()),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A session of its own: Ctrl-C on the terminal reaches only us.
            start_new_session=True,
            pass_fds=keep_open,
        )
        try:
            watch = _RankStates(agent.pid, launch_id, num_ranks, describe, report, seen) if describe else None
            with end_of(agent, _POLL_SECONDS) as ends:
                killed, why = _watch(
                    agent,
                    launch_id,
                    received,
                    grace_seconds,
                    num_ranks,
                    lost,
                    parting,
                    say,
                    watch,
                    asked,
                    stopping,
                    ends,
                )
        finally:
            if agent.poll() is None:
                _kill_tree(agent)
            kill_leftovers(launch_id, but=os.getpid())
    first = received[0] if received else None
    if watch is None:
        return Ended(agent.returncode, first, killed, why, killed_since(kills))
    return Ended(
        agent.returncode,
        first,
        killed,
        why,
        killed_since(kills),
        watch.stopped.findings,
        ranks=watch.known,
        alive=watch.alive,
    )


def _watch(
    agent: subprocess.Popen,
    launch_id: str,
    received: list[signal.Signals],
    grace_seconds: float,
    num_ranks: int,
    lost: Callable[[], Finding | None],
    parting: Callable[[], bool],
    say: Callable[[str], None],
    states: _RankStates | None,
    asked: Callable[[], None],
    stopping: Callable[[], bool],
    ends: Callable[[], bool],
) -> tuple[bool, Finding | None]:
    """Returns whether everything had to be killed, and what `lost` said."""
    deadline = None
    told: set[int] = set()
    started = False  # a rank has been seen
    alone_since: float | None = None
    next_look = 0.0
    while True:
        if ends():
            return False, lost() if agent.returncode else None
        if states is not None:
            states.look(wake=bool(received) or stopping())
        if why := lost():
            if states is not None:
                states.look_at_the_end()
            if len(ranks_below(agent.pid, launch_id)) < num_ranks:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.wait(_LAST_WORDS_SECONDS)
            # The ranks cannot save: that takes all of them.
            _kill_tree(agent)
            return True, why
        if parting() or not started:
            now = time.monotonic()
            if now >= next_look:
                next_look = now + _LOOK_SECONDS
                here = bool(ranks_below(agent.pid, launch_id))
                started = started or here
                alone_since = (alone_since or now) if started and not here and parting() else None
            if alone_since is not None and now > alone_since + _PARTING_SECONDS:
                agent.terminate()
        if not received:
            continue
        if deadline is None:
            deadline = time.monotonic() + grace_seconds
            asked()
            ranks = _tell_ranks(agent.pid, launch_id, FORWARDED[received[0]], told)
            if not ranks and not started:
                # Still at the rendezvous: there is nothing to save.
                agent.terminate()
            # An agent whose ranks have ended (another node was asked first) is left to meet the other agents: were it
            # gone, they would wait for it.
            say(_stopping(received[0], ranks, started, grace_seconds))
        elif told:
            # Ranks that were just being started when the signal came.
            _tell_ranks(agent.pid, launch_id, FORWARDED[received[0]], told)
        if received.count(signal.SIGINT) > 1 or time.monotonic() > deadline:
            if states is not None:
                states.look_at_the_end()
            say("ending all ranks now; the newest complete checkpoint stays valid")
            _kill_tree(agent)
            return True, None


class _RankStates:
    """Looks now and then whether the ranks below the agent run."""

    def __init__(
        self,
        agent_pid: int,
        launch_id: str,
        num_ranks: int,
        describe: Describe,
        report: Callable[[tuple[Finding, ...]], None],
        seen: Callable[[Sequence[psutil.Process]], None],
    ) -> None:
        self._agent_pid, self._launch_id, self._num_ranks, self._report = agent_pid, launch_id, num_ranks, report
        self._seen = seen
        self.stopped = StoppedRanks(describe)
        self.known: dict[int, int] = {}
        """The rank of each process id that was seen."""
        self.alive: frozenset[int] = frozenset()
        """Those that ran when the run was ended."""
        self._ranks: list[psutil.Process] = []
        self._next_look = 0.0

    def look(self, *, wake: bool) -> None:
        """If it is time to; `wake` lets ranks that a signal stopped go on."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _STATES_SECONDS
        alive = [rank for rank in self._ranks if rank.is_running()]
        one_died = len(alive) < len(self._ranks)
        # All of /proc is read only until all are known.
        self._ranks = (
            alive if alive and len(alive) >= self._num_ranks else ranks_below(self._agent_pid, self._launch_id)
        )
        for rank in self._ranks:
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                rank_number(rank, self.known)
        self._seen(self._ranks)
        self.stopped.look(self._ranks, at_the_end=wake or one_died)
        self._report(self.stopped.standing)
        if wake or one_died:
            self.stopped.wake()

    def look_at_the_end(self) -> None:
        ranks = ranks_below(self._agent_pid, self._launch_id)
        self.alive = frozenset(rank.pid for rank in ranks)
        self.stopped.look(ranks, at_the_end=True)


def _stopping(received: signal.Signals, ranks: int, started: bool, grace_seconds: float) -> str:
    if not ranks and started:
        return f"{received.name}: the ranks of this node have ended already"
    if not ranks:
        return f"{received.name}: stopping; no rank has started yet"
    again = "; Ctrl-C again ends them at once" if received == signal.SIGINT else ""
    return (
        f"{received.name}: {ranks} rank(s) of this node were asked to save a checkpoint and stop, within "
        f"{grace_seconds:.0f} s{again}"
    )


def _tell_ranks(agent_pid: int, launch_id: str, signum: signal.Signals, told: set[int]) -> int:
    """Signal the ranks that do not know yet; returns how many that were."""
    new = [rank for rank in ranks_below(agent_pid, launch_id) if rank.pid not in told]
    for rank in new:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(signum)
        told.add(rank.pid)
    return len(new)


def _kill_tree(agent: subprocess.Popen) -> None:
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(agent.pid).children(recursive=True)
    agent.kill()  # first, so that it starts no new ranks
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    agent.wait()


@contextlib.contextmanager
def remember_signals(received: list[signal.Signals]) -> Iterator[None]:
    """Within, the signals that ask us to stop are appended to `received`, and do nothing else."""

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    before = {}
    for number in FORWARDED:
        # nohup ignores SIGHUP on purpose: leave that.
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
