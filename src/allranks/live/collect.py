"""What this node's ranks do, as far as it shows on this node: their events, processes, logs and its interfaces."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import psutil

from allranks.live.gpu_use import GpuUse
from allranks.live.links import LinkCounter
from allranks.live.rank_progress import RankProgress
from allranks.live.state import NodeState, RankState
from allranks.observe import EventFollower, RunDir

GONE = "gone"
_STATES = {
    psutil.STATUS_RUNNING: "R",
    psutil.STATUS_SLEEPING: "S",
    psutil.STATUS_DISK_SLEEP: "D",
    psutil.STATUS_STOPPED: "T",
    psutil.STATUS_TRACING_STOP: "t",
    psutil.STATUS_ZOMBIE: "Z",
    psutil.STATUS_DEAD: GONE,
    psutil.STATUS_IDLE: "I",
}


class NodeCollector:
    """Follows the events of a node's ranks from now on, and looks at their processes.

    `interfaces`: whose counters are those of the run; without any, all but the loopback. `gpus`: whose use is told.
    `num_restarts`: how often all ranks had been started again before.
    """

    def __init__(
        self,
        run: RunDir,
        run_id: str,
        node: int | str,
        host: str,
        *,
        interfaces: Sequence[str] = (),
        gpus: GpuUse | None = None,
        num_restarts: int = 0,
    ) -> None:
        self._run, self._run_id, self._node, self._host = run, run_id, node, host
        self._interfaces, self._gpus, self._num_restarts = tuple(interfaces), gpus, num_restarts
        # A resumed run appends: what earlier starts wrote is not read.
        self._before = {path: _size(path) for path in [*run.all_events(), *run.logs(node).glob("rank-*.log")]}
        self._followers: dict[int, EventFollower] = {}
        self._progress: dict[int, RankProgress] = {}
        self._bytes: tuple[float, int, int] | None = None
        self._cpu: dict[int, tuple[float, float]] = {}  # pid -> when it was looked at, and its seconds of CPU then
        self._machine: tuple[float, float, float] | None = None  # the same of all programs, and what was idle
        self._links = LinkCounter()
        self._ages = _Ages()

    def collect(self, processes: Mapping[int, psutil.Process], launcher_pid: int | None = None) -> NodeState:
        """The state of all ranks that this node has had so far; `processes` are those that are alive, by rank."""
        now = time.time()
        for rank in processes:
            self._progress.setdefault(rank, RankProgress(rank, self._num_restarts))
        use = self._gpus.of_processes() if self._gpus is not None else {}
        ranks = []
        for rank, progress in sorted(self._progress.items()):
            progress.read(event for event in self._follower(rank).read() if event.run == self._run_id)
            state = progress.state
            age = None if progress.newest is None else self._ages.of(("events", rank), progress.newest, now)
            since = state.since
            if since is not None:
                since = now - self._ages.of(("place", rank), since, now)
            state = replace(state, since=since, events_age_seconds=age)
            ranks.append(
                self._with_process(self._with_output(state, processes.get(rank), now), processes.get(rank), use)
            )
        bytes_in, bytes_out = self._traffic()
        idle, busy = self._machine_use()
        own = sum(one.cpu_use or 0.0 for one in ranks)
        return NodeState(
            node=self._node,
            host=self._host,
            t=now,
            ranks=tuple(ranks),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            idle_cpu=idle,
            other_cpu_use=None if busy is None else max(0.0, busy - own),
            launcher_pid=launcher_pid,
            warnings=self._gpus.warnings if self._gpus is not None else (),
            links=self._links.read([process.pid for process in processes.values()]),
        )

    def _with_process(
        self, state: RankState, process: psutil.Process | None, use: Mapping[int, tuple[float | None, int | None]]
    ) -> RankState:
        if process is None:
            return replace(state, process_state=GONE)
        found, memory, cpu = GONE, state.memory_bytes, None
        with contextlib.suppress(psutil.Error, OSError):
            found = _STATES.get(process.status(), "?")
            memory = process.memory_info().rss
            cpu = self._cpu_use(process)
        busy, held = use.get(process.pid, (None, None))
        return replace(
            state,
            pid=process.pid,
            process_state=found,
            memory_bytes=memory,
            cpu_use=cpu,
            gpu_use=busy,
            gpu_memory_bytes=held,
        )

    def _cpu_use(self, process: psutil.Process) -> float | None:
        """Cores that it has taken since the last call."""
        now, seconds = time.monotonic(), sum(process.cpu_times()[:2])
        before = self._cpu.get(process.pid)
        self._cpu[process.pid] = now, seconds
        if before is None or now <= before[0]:
            return None
        return max(0.0, seconds - before[1]) / (now - before[0])

    def _machine_use(self) -> tuple[float | None, float | None]:
        """Cores that were idle, and that were used by anything, since the last call."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # A guest's time is also the user's (proc_stat(5)).
        known = ("user", "nice", "system", "irq", "softirq", "steal")
        now, busy = time.monotonic(), sum(getattr(times, name, 0.0) for name in known)
        before, self._machine = self._machine, (now, idle, busy)
        if before is None or now <= before[0]:
            return None, None
        seconds = now - before[0]
        return max(0.0, idle - before[1]) / seconds, max(0.0, busy - before[2]) / seconds

    def _follower(self, rank: int) -> EventFollower:
        path = self._run.events(rank)
        return self._followers.setdefault(rank, EventFollower(path, self._before.get(path, 0)))

    def _with_output(self, state: RankState, process: psutil.Process | None, now: float) -> RankState:
        """A log that an earlier start wrote is silent since the process began, and not since that start."""
        path = self._run.log(self._node, state.rank)
        with contextlib.suppress(OSError):
            log, began = path.stat(), 0.0
            if process is not None:
                with contextlib.suppress(psutil.Error):
                    began = process.create_time()
            age = self._ages.of(("output", state.rank), max(log.st_mtime, began), now)
            written = max(0, log.st_size - self._before.get(path, 0))
            return replace(state, output_age_seconds=age, output_bytes=written)
        return state

    def _traffic(self) -> tuple[float | None, float | None]:
        """Bytes in and out a second since the last call."""
        counters = psutil.net_io_counters(pernic=True, nowrap=True)
        used = [
            one for name, one in counters.items() if name in self._interfaces or not (self._interfaces or name == "lo")
        ]
        now, before = time.monotonic(), self._bytes
        self._bytes = now, sum(one.bytes_recv for one in used), sum(one.bytes_sent for one in used)
        if before is None or now <= before[0]:
            return None, None
        seconds = now - before[0]
        return max(0, self._bytes[1] - before[1]) / seconds, max(0, self._bytes[2] - before[2]) / seconds


class _Ages:
    """How long ago moments of the wall clock were: a clock that is set meanwhile makes no rank seem to hang."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], tuple[float, float]] = {}  # the moment, and the steady clock's then

    def of(self, what: tuple[str, int], moment: float, now: float) -> float:
        """Seconds since `moment`, as of its first look; from then on the steady clock counts."""
        steady = time.monotonic()
        if self._seen.get(what, (None, 0.0))[0] != moment:
            self._seen[what] = moment, steady - max(0.0, now - moment)
        return steady - self._seen[what][1]


def _size(path: object) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size  # type: ignore[attr-defined]
    return 0
