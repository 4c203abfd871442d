"""How much of a step a rank worked itself, without what it waited in collectives for others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

# The main thread's nanoseconds on a CPU, and of waiting for one (Documentation/scheduler/sched-stats.rst).
_SCHEDSTAT = Path("/proc/self/schedstat")


class OwnWork(ABC):
    """Around each step `begin` and `end` are called, and `seconds` once its numbers are read anyhow."""

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def end(self, step: int) -> None: ...

    @abstractmethod
    def seconds(self, step: int) -> float | None:
        """Of its own work in that step; None where it is not known. To be asked once. Waits for nothing."""


class CpuWork(OwnWork):
    """The seconds in which the main thread ran or wanted to.

    A thread that waits in a collective sleeps; one that is held back, by other programs or by a limit of its cgroup,
    wants to run. Forward and backward passes are made by the main thread on a CPU, whatever the strategy. Nothing is
    known where the kernel does not tell.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._seconds: dict[int, float] = {}

    def begin(self) -> None:
        self._began = _seconds()

    def end(self, step: int) -> None:
        now = _seconds()
        if now is not None and self._began is not None:
            self._seconds[step] = now - self._began

    def seconds(self, step: int) -> float | None:
        return self._seconds.pop(step, None)


class Event(Protocol):
    """What is used of torch.cuda.Event."""

    def record(self) -> Any: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end: Any, /) -> float: ...


class GpuWork(OwnWork):
    """The seconds that the device needed for the forward passes of the decoder layers, but not for recomputed ones.

    On a GPU the main thread only hands out the work. Events on the stream that computes lie within each layer: what the
    stream waits for before that, such as the layer's parameters (FSDP), or after the last one, such as the gradients of
    others (DDP), is not between them. Backward passes are not measured: collectives lie within them. It has been tried
    without a GPU only.
    """

    def __init__(self, layers: Iterable[nn.Module], new_event: Callable[[], Event] | None = None) -> None:
        self._new_event: Callable[[], Event] = new_event or (lambda: torch.cuda.Event(enable_timing=True))
        self._spare: list[Event] = []
        self._is_open = False
        self._pairs: list[tuple[Event, Event]] = []
        self._begun: list[Event] = []
        self._of_step: dict[int, list[tuple[Event, Event]]] = {}
        for layer in layers:
            # Last of what comes before the layer and first of what follows it: FSDP's own hooks lie outside.
            layer.register_forward_pre_hook(self._enter)
            layer.register_forward_hook(self._leave, prepend=True)

    def begin(self) -> None:
        self._is_open = True

    def end(self, step: int) -> None:
        self._is_open = False
        self._of_step[step], self._pairs = self._pairs, []
        # A recomputed layer is left by an exception as soon as all is there that its backward pass needs.
        self._spare += self._begun
        self._begun.clear()

    def seconds(self, step: int) -> float | None:
        pairs = self._of_step.pop(step, [])
        if not pairs or not pairs[-1][1].query():
            return None  # events that have not happened are left to the device
        total = sum(begin.elapsed_time(end) for begin, end in pairs) / 1000
        self._spare += [event for pair in pairs for event in pair]
        return total

    def _enter(self, layer: nn.Module, args: Any) -> None:
        if self._is_open:
            self._begun.append(self._recorded())

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        if self._is_open and self._begun:
            self._pairs.append((self._begun.pop(), self._recorded()))

    def _recorded(self) -> Event:
        event = self._spare.pop() if self._spare else self._new_event()
        event.record()
        return event


class UnknownWork(OwnWork):
    """Nothing tells: layers that are compiled have their hooks compiled, too."""

    def begin(self) -> None:
        pass

    def end(self, step: int) -> None:
        pass

    def seconds(self, step: int) -> None:
        return None


def own_work(model: nn.Module, layer_classes: Iterable[str], *, on_gpu: bool, compiled: bool) -> OwnWork:
    """What measures a rank's own work there; `layer_classes` are the names of the decoder layers' classes."""
    if not on_gpu:
        return CpuWork()
    names = set(layer_classes)
    layers = [module for module in model.modules() if type(module).__name__.removeprefix("FSDP") in names]
    return UnknownWork() if compiled or not layers else GpuWork(layers)


def _seconds() -> float | None:
    try:
        running, waiting, *_ = _SCHEDSTAT.read_text().split()
        return (int(running) + int(waiting)) / 1e9
    except (OSError, ValueError):
        return None
