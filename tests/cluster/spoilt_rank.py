"""Faults of ranks, put into them as their `sitecustomize`: see `inject` of injected.py.

`FAULT` names the fault; the moment at which it happens is written to the file `FAULT_MOMENT`.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.rank_faults import deadlock, eats_memory, tokenizes

FAULT, RANK = os.environ.get("FAULT", ""), os.environ.get("RANK", "")


def happens_now() -> None:
    Path(os.environ["FAULT_MOMENT"]).write_text(repr(time.time()))


def raises() -> None:
    raise ValueError("bad batch 17")


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def never_comes() -> None:
    threading.Event().wait()  # as on a lock or on a dead mount


def other_weights() -> None:
    frame = sys._getframe()
    while "loop" not in frame.f_locals:
        assert frame.f_back
        frame = frame.f_back
    next(frame.f_locals["loop"].model.hf_model.parameters()).data.view(-1)[0] += 1e-3


def other_collective() -> None:
    import torch

    torch.distributed.broadcast(torch.zeros(12), 0)


def other_shape() -> None:
    import torch

    torch.distributed.all_reduce(torch.zeros(9 if RANK == "1" else 8))


def at_step(number: int, do: Callable[[], None]) -> Callable[[Any], Any]:
    def spoil(reader: Any) -> Any:
        push = reader.push

        def spoilt(self: Any, step: int, *args: Any, **kwargs: Any) -> Any:
            if step == number:
                happens_now()
                do()
            return push(self, step, *args, **kwargs)

        reader.push = spoilt
        return reader

    return spoil


def not_a_number(reader: Any) -> Any:
    push = reader.push

    def spoilt(self: Any, step: int, loss_sums: Any, *args: Any, **kwargs: Any) -> Any:
        if step == 4:
            happens_now()
            loss_sums = loss_sums * float("nan")
        return push(self, step, loss_sums, *args, **kwargs)

    reader.push = spoilt
    return reader


def leave_out(reader: Any) -> Any:
    push = reader.push

    def spoilt(self: Any, step: int, *args: Any, **kwargs: Any) -> Any:
        import torch

        all_reduce = torch.distributed.all_reduce
        if step == 4:
            happens_now()
            torch.distributed.all_reduce = lambda *args, **kwargs: None
        try:
            return push(self, step, *args, **kwargs)
        finally:
            torch.distributed.all_reduce = all_reduce

    reader.push = spoilt
    return reader


def blocked_reading(collate: Any) -> Any:
    calls = []

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            happens_now()
            never_comes()
        return collate(*args, **kwargs)

    return spoilt


STATS = ("allranks.train.stats", "StatsReader")
# Of which ranks, and what is put in the place of which name.
FAULTS: dict[str, tuple[str, str, str, Callable[[Any], Any]]] = {
    "exception": ("1", *STATS, at_step(4, raises)),
    "killed": ("1", *STATS, at_step(4, is_killed)),
    "eats memory": ("1", *STATS, at_step(4, eats_memory)),
    "never comes": ("1", *STATS, at_step(4, never_comes)),
    "deadlock": ("1", *STATS, at_step(4, deadlock)),
    "other weights": ("1", *STATS, at_step(1, other_weights)),
    "other collective": ("1", *STATS, at_step(4, other_collective)),
    "other shape": ("01", *STATS, at_step(4, other_shape)),
    "tokenizes": ("1", *STATS, at_step(4, tokenizes)),
    "not a number": ("1", *STATS, not_a_number),
    "left out": ("1", *STATS, leave_out),
    "blocked data": ("1", "allranks.train.feed", "collate", blocked_reading),
}


def when_loaded(module: str, name: str, spoil: Callable[[Any], Any]) -> None:
    while not hasattr(sys.modules.get(module), name):
        time.sleep(0.01)
    owner = sys.modules[module]
    setattr(owner, name, spoil(getattr(owner, name)))


if RANK and RANK in FAULTS.get(FAULT, ("",))[0]:
    threading.Thread(target=when_loaded, args=FAULTS[FAULT][1:], daemon=True).start()
