"""What a rank works itself: on a CPU by the kernel's own account of it, on a GPU between events on its stream."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from allranks.train.own_work import CpuWork, GpuWork, UnknownWork, own_work

WORKS = """
import threading, time
from allranks.train.own_work import CpuWork

work = CpuWork()
work.begin()
begin = time.thread_time()
while time.thread_time() < begin + 0.3:
    pass
work.end(1)
work.begin()
threading.Event().wait(0.3)
work.end(2)
print(work.seconds(1), work.seconds(2), work.seconds(1))
"""


def test_work_counts_and_waiting_does_not() -> None:
    """In a process of its own, whose main thread works and then waits, as for others in a collective."""
    busy, waiting, again = subprocess.check_output([sys.executable, "-c", WORKS], text=True).split()
    assert float(busy) >= 0.29
    assert float(waiting) < float(busy)
    assert again == "None"


class Stream:
    """A device's stream, by its own clock: what is handed out takes time there, and events happen in its order."""

    def __init__(self) -> None:
        self.now, self.reached, self.made = 0.0, 0.0, 0

    def event(self) -> "StreamEvent":
        self.made += 1
        return StreamEvent(self)


class StreamEvent:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.at = stream, 0.0

    def record(self) -> None:
        self.at = self.stream.now

    def query(self) -> bool:
        return self.at <= self.stream.reached

    def elapsed_time(self, end: "StreamEvent") -> float:
        assert self.query() and end.query(), "asked before it has happened: the host would wait"
        return 1000 * (end.at - self.at)


class Layer(nn.Module):
    """Takes `seconds` of the stream; before it, as FSDP's own hook does, the stream waits for others."""

    def __init__(self, stream: Stream, seconds: float, waits: float) -> None:
        super().__init__()
        self.stream, self.seconds = stream, seconds
        self.weight = nn.Parameter(torch.ones(1))
        self.register_forward_pre_hook(lambda *_: self._pass(waits), prepend=True)
        self.register_forward_hook(lambda *_: self._pass(waits))

    def _pass(self, seconds: float) -> None:
        self.stream.now += seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._pass(self.seconds)
        return x * self.weight


def step(work: GpuWork, layers: list[Layer], number: int, *, recompute: bool = False) -> None:
    work.begin()
    x = torch.ones(1, requires_grad=True)
    for layer in layers:
        x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
    x.sum().backward()
    work.end(number)


@pytest.mark.parametrize("recompute", [False, True])
def test_on_a_gpu_the_layers_count_and_what_the_stream_waits_for_around_them_does_not(recompute) -> None:
    stream = Stream()
    layers = [Layer(stream, 0.25, waits=7.0), Layer(stream, 0.5, waits=3.0)]
    work = GpuWork(layers, stream.event)
    step(work, layers, 1, recompute=recompute)
    stream.reached = stream.now
    layers[0](torch.ones(1))  # an evaluation
    assert work.seconds(1) == pytest.approx(0.75)


def test_nothing_waits_for_the_device_and_its_events_are_used_again() -> None:
    stream = Stream()
    layers = [Layer(stream, 0.25, waits=1.0)]
    work = GpuWork(layers, stream.event)
    told = []
    for number in range(1, 9):  # numbers are read a step later, as on a GPU
        step(work, layers, number)
        told.append(work.seconds(number - 1))
        stream.reached = stream.now
    assert told == [None, *[pytest.approx(0.25)] * 7]
    assert stream.made == 4
    step(work, layers, 9)
    assert work.seconds(9) is None  # the device has not come to it
    assert work.seconds(99) is None


def test_which_measure_fits() -> None:
    model = nn.Sequential(Layer(Stream(), 0.0, 0.0), nn.Linear(1, 1))
    assert isinstance(own_work(model, ["Layer"], on_gpu=False, compiled=False), CpuWork)
    assert isinstance(own_work(model, ["Layer"], on_gpu=True, compiled=False), GpuWork)
    assert isinstance(own_work(model, ["Layer"], on_gpu=True, compiled=True), UnknownWork)
    assert isinstance(own_work(model, ["Block"], on_gpu=True, compiled=False), UnknownWork)
    sharded = type("FSDPLayer", (Layer,), {})(Stream(), 0.0, 0.0)
    assert isinstance(own_work(nn.Sequential(sharded), ["Layer"], on_gpu=True, compiled=False), GpuWork)
