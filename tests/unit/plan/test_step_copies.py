"""What an optimizer's step over all parameters at once makes for itself is what is counted."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from allranks.plan.optimizer_state import step_copies

SIZE, NUMBER = (64, 64), 24
KINDS = {
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", KINDS)
def test_a_step_takes_as_many_copies_as_are_counted(name, decay):
    parameters = [torch.nn.Parameter(torch.randn(SIZE)) for _ in range(NUMBER)]
    for parameter in parameters:
        parameter.grad = torch.randn(SIZE)
    optimizer = KINDS[name](parameters, lr=0.01, weight_decay=decay, foreach=True)
    optimizer.step()  # its state is there from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        optimizer.step()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    of_all = NUMBER * 4 * SIZE[0] * SIZE[1]
    assert step_copies(name, decays=decay > 0) == pytest.approx(peak / of_all, abs=0.15)
