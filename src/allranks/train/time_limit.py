"""How long ranks wait for each other in a collective: long until the first steps are done, and short after them."""

from __future__ import annotations

import contextlib
import datetime
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from allranks.config.sections.parallel import START_TIMEOUT_SECONDS
from allranks.observe import EventLog
from allranks.observe.events import TimeLimitEvent
from allranks.train.traffic import CHECKPOINT_GROUP

# Once steps follow each other, ranks reach a collective within a moment of each other: a rank that is minutes late
# does not come any more. Five minutes outlast a stall of shared storage (NFS and Lustre fail over in two or three).
_SHORT_SECONDS = 300
# Where a step itself takes minutes, ranks may be as far apart; many times their step is another thing.
_STEPS = 20
# The first step also compiles, and makes connections; so does, on some paths, the second.
_FIRST_STEPS = 3


class TimeLimit:
    """The limit of this rank's collectives, and the event `time_limit` that tells it whenever it changes.

    `asked` is what the user's config says, which then holds from the start to the end.
    """

    def __init__(self, asked: int | None, events: EventLog) -> None:
        self._events = events
        self._fixed = asked is not None
        self._start = asked or START_TIMEOUT_SECONDS
        self._steps = 0
        self.seconds = 0

    def begin(self) -> None:
        """Set what holds while ranks may be far apart: before the first step, and again after the last."""
        self._set(self._start)

    def after_step(self, seconds: float) -> None:
        """Shorten the limit to what fits steps such as this one, which took `seconds`; only the first few change it."""
        if self._fixed or self._steps >= _FIRST_STEPS:
            return
        self._steps += 1
        limit = min(self._start, max(_SHORT_SECONDS, round(_STEPS * seconds)))
        if limit < self.seconds:
            self._set(limit)

    def _set(self, seconds: int) -> None:
        if dist.is_initialized() and seconds != self.seconds:
            limit_collectives(seconds)
            self.seconds = seconds
            self._events.write(TimeLimitEvent(seconds=seconds))


def limit_collectives(seconds: float) -> None:
    """Let the collectives that this rank begins from now on fail after `seconds`, in every group that it is in.

    Groups of device meshes and DeepSpeed's own, which are made with other defaults, are among them. The group of saves
    is left out: its ranks write, and wait for each other, as long as the storage takes.
    """
    timeout = datetime.timedelta(seconds=seconds)
    for group in list(distributed_c10d._world.pg_map):
        if not isinstance(group, dist.ProcessGroup) or group.group_desc == CHECKPOINT_GROUP:
            continue
        for backend in _backends(group):
            backend._set_default_timeout(timeout)


def _backends(group: dist.ProcessGroup) -> list[Any]:
    """What carries a group's collectives. With TORCH_DISTRIBUTED_DEBUG=DETAIL a wrapper stands before each, which
    torch's own `_set_pg_timeout` passes over."""
    found = []
    for device in {torch.device(kind) for kind in group._device_types}:
        with contextlib.suppress(RuntimeError):  # none for this kind of device
            backend = group._get_backend(device)
            found.append(getattr(backend, "wrapped_pg", backend))
    return found
