"""The engine of one rank as a child of Ray's worker, as it would be a child of torchrun's agent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from allranks import durable
from allranks.cluster.cores import usable_cores
from allranks.cluster.gpus import count_gpus
from allranks.cluster.memory import killed_since, memory_kills
from allranks.doctor import causes
from allranks.doctor.ranks import code_of_signal, killed_by
from allranks.doctor.stopped import rank_stopped
from allranks.exit_codes import FAILED, PREEMPTED
from allranks.findings import Finding, Who
from allranks.launch.node.ranks import LAUNCH_ID, RUN_ID
from allranks.launch.node.starters.memory import allocator_variables
from allranks.launch.node.stopped_ranks import StoppedRanks
from allranks.launch.ray_train.coordinator import Placement, RankExit, RankSpec
from allranks.launch.spec.program import engine
from allranks.live.collect import NodeCollector
from allranks.live.gpu_use import GpuUse
from allranks.observe import EventFollower, RunDir
from allranks.observe.events import ErrorEvent, ExitEvent, PhaseEvent

BEFORE_TRAINING = "stopped before it trained"
ENDED_FOR_HANG = "it was ended, for the ranks hung (on_hang: restart)"


class Engine:
    """Starts when it is made; use it as a context manager, which leaves nothing running."""

    def __init__(self, spec: RankSpec, rank: int, placement: Placement, local_world_size: int) -> None:
        self.spec, self.rank, self.host = spec, rank, placement.host
        self.run = RunDir(Path(spec.directory, spec.output_dir))
        self.log = self.run.log(placement.node_rank, rank)
        self.events = self.run.events(rank)
        self.start_of_events = self.events.stat().st_size if self.events.exists() else 0
        self._lines: list[str] = []
        self._sent: signal.Signals | None = None
        self._hung = False
        self._kills = memory_kills()
        config = self.run.config(placement.node_rank)
        durable.write(config, spec.config, make_parents=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *engine(config.absolute()).words()],
                env=rank_environment(os.environ, spec, rank, placement, local_world_size),
                cwd=spec.directory,
                stdin=subprocess.DEVNULL,
                # Rank 0 is shown at the driver; the others change over to their own log themselves, later.
                stdout=subprocess.PIPE if rank == 0 else log,
                stderr=subprocess.STDOUT,
            )
        self._gpus = GpuUse() if count_gpus() else None
        self._collector = NodeCollector(
            self.run, spec.run_id, placement.node_rank, self.host, gpus=self._gpus, num_restarts=spec.attempt - 1
        )
        self._watched = StoppedRanks(partial(self._describe, placement.node_rank))
        self._processes: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            self._processes.append(psutil.Process(self._process.pid))
        if self._process.stdout is not None:
            self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
            self._reader.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gpus is not None:
            self._gpus.close()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait(self, seconds: float) -> bool:
        """Wait so long at most; True once the engine has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return True
        return False

    def take_lines(self) -> list[str]:
        """What rank 0 has printed since the last call."""
        taken = self._lines[:]
        del self._lines[: len(taken)]
        return taken

    def ask_to_stop(self) -> None:
        """Have it save and end, as a preemption would. Only the first call does anything."""
        if self._sent is None:
            # Before it trains there is nothing to save, and it may be waiting for ranks that have ended.
            self._sent = signal.SIGTERM if self._is_training() else signal.SIGKILL
            self._process.send_signal(self._sent)

    def end_hung(self) -> None:
        """End it, for the ranks hang. None of them can save: that takes all."""
        if not self._hung:
            self._hung = True
            self._process.kill()

    def state(self) -> dict[str, Any]:
        """What this rank does now, as a message of its node's state."""
        is_alive = self._processes and self._process.poll() is None
        alive = {self.rank: self._processes[0]} if is_alive else {}
        return self._collector.collect(alive, os.getpid()).to_message()

    def stopped(self) -> tuple[Finding, ...]:
        """That this rank does not run, as far as a look now and those before tell. Once it was asked to stop, it is let
        go on, for it could not hear of it."""
        asked = self._sent is not None
        self._watched.look(self._processes, at_the_end=asked)
        if asked:
            self._watched.wake()
        return self._watched.standing

    def _describe(self, node: int, rank: int, pid: int, state: str, seconds: float) -> Finding:
        events = EventFollower(self.events, self.start_of_events).read()
        return rank_stopped(Who(node, rank, self.host), pid, state, seconds, events)

    def end(self) -> RankExit:
        """How it ended; call it once it has."""
        if self._process.stdout is not None:
            self._reader.join(timeout=5)  # a child of the engine's that lives on may hold the pipe
        code = self._process.returncode
        events = EventFollower(self.events, self.start_of_events).read()
        exits = [event for event in events if isinstance(event, ExitEvent)]
        errors = [event for event in events if isinstance(event, ErrorEvent)]
        message, cause = (errors[0].message, errors[0].code or "") if errors else ("", "")
        if code == 0 and exits:
            code = exits[-1].code
        elif self._hung and code == -signal.SIGKILL:
            code, errors, message, cause = FAILED, [], ENDED_FOR_HANG, causes.HANG
        elif self._sent is not None and code == -self._sent:
            code, message = PREEMPTED, BEFORE_TRAINING
        elif code < 0:
            memory = killed_since(self._kills)
            errors, message, cause = [], killed_by(-code, memory=memory), code_of_signal(-code, memory)
        return RankExit(
            self.spec.attempt,
            self.rank,
            self.host,
            code,
            message,
            str(self.log),
            cause,
            is_shown=self.rank == 0 and bool(errors),
        )

    def _is_training(self) -> bool:
        events = EventFollower(self.events, self.start_of_events).read()
        return any(isinstance(event, PhaseEvent) and event.phase == "train" for event in events)

    def _read(self, output: IO[bytes]) -> None:
        with output:
            for line in output:
                self._lines.append(line.decode("utf-8", "replace").rstrip("\n"))


def rank_environment(
    env: Mapping[str, str], spec: RankSpec, rank: int, placement: Placement, local_world_size: int
) -> dict[str, str]:
    """The environment of a rank: that of Ray's worker (`env`), what the driver hands on, and torchrun's variables."""
    threads = {"OMP_NUM_THREADS": str(max(1, usable_cores() // local_world_size))}  # Ray's own value: CPUs reserved
    run = RunDir(Path(spec.directory, spec.output_dir))
    return {
        **env,
        **threads,
        **allocator_variables(count_gpus(env), {**env, **spec.environment}),
        **spec.environment,
        "RANK": str(rank),
        "WORLD_SIZE": str(spec.world_size),
        "LOCAL_RANK": str(placement.local_rank),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "GROUP_RANK": str(placement.node_rank),
        "MASTER_ADDR": spec.master_addr,
        "MASTER_PORT": str(spec.master_port),
        # A restarted rank goes on from this run's own newest checkpoint, whatever the run was started from.
        "TORCHELASTIC_RESTART_COUNT": str(spec.attempt - 1),
        RUN_ID: spec.run_id,
        LAUNCH_ID: spec.run_id,
        "ALLRANKS_LOG_DIR": str(run.logs(placement.node_rank).absolute()),
    }
