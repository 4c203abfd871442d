"""Ranks that are forks of a process which has imported what ranks import: a fifth of what a start by a launcher costs.

For tests of the engine: `python -m allranks.train CONFIG` with what torchrun would put into its environment. What a
launcher does, how the nodes meet, and how a run ends as a whole is for `start` and `run` of conftest.py, and the lab.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import allranks.train.__main__ as program
from tests.cluster import struck_rank
from tests.warm import warm_processes


class ForkedRanks:
    """Ranks of one run on this machine, started. `output`: what rank 0 prints; the others' lies beside it (.1, .2)."""

    def __init__(self, words: Sequence[str], world_size: int, port: int, output: Path, env: Mapping[str, str]) -> None:
        self.output = output
        self.outputs = [output, *(output.with_suffix(f".{rank}") for rank in range(1, world_size))]
        self.processes = []
        for rank, own in enumerate(self.outputs):
            given = {**env, **(_of_torchrun(rank, world_size, port) if world_size > 1 else {})}
            process = warm_processes().Process(target=_rank, args=(list(words), given, own))
            process.start()
            self.processes.append(process)

    def is_running(self) -> bool:
        return any(process.exitcode is None for process in self.processes)

    def kill(self) -> None:
        """SIGKILL to all that still run, and wait for their end."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self, timeout_seconds: float) -> int:
        """The first exit code that is not 0, by rank, or 0. Ranks that have not ended by then are killed (-9)."""
        deadline = time.monotonic() + timeout_seconds
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        self.kill()
        return next((process.exitcode for process in self.processes if process.exitcode), 0)


def _of_torchrun(rank: int, world_size: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RESTART_COUNT": 0}
    return {name: str(value) for name, value in (numbers | address).items()}


def _rank(words: list[str], env: dict[str, str], output: Path) -> NoReturn:
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
    os.chdir(output.parent)
    os.environ.clear()  # the process that forks has that of the test that started it
    os.environ.update(env)
    struck_rank.arm()
    program.main(words)
    os._exit(98)  # it ends the process itself
