"""A recorder counts what the allocator gives without it, also where torch does another thing under a mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from allranks.model.chunked import linear_cross_entropy
from allranks.trace.recorder import Recorder

NUM_ROWS, WIDTH, VOCABULARY = 64, 128, 1024


def alone(hidden: Tensor, weight: Tensor) -> None:
    """The weight's second gradient is added to its first."""
    again = weight * 1
    (again.sin().sum() + again.cos().sum()).backward()


def shared(hidden: Tensor, weight: Tensor) -> None:
    """One gradient goes to two tensors, and the first of these gets a second one while the other has it still."""
    one, other = weight * 1, weight * 1
    ((one + other).sin().sum() + one.cos().sum()).backward()


def spread(hidden: Tensor, weight: Tensor) -> None:
    """A sum's gradient is one number, read as many, to which nothing can be added."""
    again = weight * 1
    (again.cos().sum() + again.sum()).backward()


def chunked(hidden: Tensor, weight: Tensor) -> None:
    """The logits of a chunk come and go within one operation."""
    labels = torch.zeros(NUM_ROWS, dtype=torch.int64)
    linear_cross_entropy(hidden, weight, None, labels, rows=NUM_ROWS).backward()


def allocated(run: Callable[[Tensor, Tensor], None], *given: nn.Parameter) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run(*given)
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("run", [alone, shared, spread, chunked])
def test_as_much_is_recorded_as_is_allocated(run):
    hidden, weight = (nn.Parameter(torch.randn(rows, WIDTH)) for rows in (NUM_ROWS, VOCABULARY))
    run(hidden, weight)  # what is made once, for every later time
    hidden.grad = weight.grad = None
    expected = allocated(run, hidden, weight)
    hidden.grad = weight.grad = None
    recorder = Recorder()
    with recorder:
        recorder.mark((hidden, weight), "parameters")
        run(hidden, weight)
    [parts] = recorder.peaks().values()
    assert sum(parts.values()) - parts["parameters"] == pytest.approx(expected, rel=0.01)
