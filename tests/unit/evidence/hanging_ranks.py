"""Real ranks that really hang, as forks of a warm process."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch.distributed as dist

from allranks.evidence.in_program.allranks_answers import answer, recorded
from tests.warm import warm_processes

# Ranks are found by their run, on the whole machine: those of tests beside these are of another one.
THIS_RUN = f"run-of-{os.getpid()}"
DEADLINE_SECONDS = 60.0  # of a loaded machine: all answer within a moment


@contextlib.contextmanager
def hanging(
    function: Callable, folder: Path, num_ranks: int = 1, run: str = THIS_RUN, launch: str = ""
) -> Iterator[list[int]]:
    """The process ids of ranks that are in `function(rank, ready)`, which calls `ready` and then hangs.

    `launch`: the id of each rank's launcher, where `{rank}` stands for its number.
    """
    processes = [
        warm_processes().Process(target=_rank, args=(function, rank, num_ranks, folder, run, launch.format(rank=rank)))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while sum((folder / f"ready-{rank}").exists() for rank in range(num_ranks)) < num_ranks:
            assert time.monotonic() < deadline
            assert all(process.is_alive() for process in processes)
            time.sleep(0.01)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            for below in psutil.Process(process.pid).children(recursive=True) if process.is_alive() else ():
                below.kill()
            process.kill()
        for process in processes:
            process.join()


def when(condition: Callable[[], bool], ready: Callable[[], None]) -> None:
    """Call `ready` once the condition holds, from another thread: this one is about to hang."""

    def wait() -> None:
        while not condition():
            time.sleep(0.02)
        ready()

    threading.Thread(target=wait, daemon=True).start()


def entered(count: int) -> Callable[[], bool]:
    """This rank has entered so many collectives, so far as its recorder tells."""
    return lambda: sum(len(one.get("entries", [])) for one in recorded()["recorders"]) >= count


def main_thread_in(function: str) -> Callable[[], bool]:
    main = threading.main_thread().ident

    def is_in() -> bool:
        frame = sys._current_frames().get(main)
        while frame is not None and frame.f_code.co_name != function:
            frame = frame.f_back
        return frame is not None

    return is_in


def _rank(function: Callable, rank: int, num_ranks: int, folder: Path, run: str, launch: str) -> None:
    os.environ |= {"ALLRANKS_RUN_ID": run, "ALLRANKS_LAUNCH_ID": launch}
    assert answer(rank, str(folder))
    if num_ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    function(rank, (folder / f"ready-{rank}").touch)
    time.sleep(1000)
