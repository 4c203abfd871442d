"""What an optimizer's step makes for itself is what is counted, over all parameters at once and over one at a time."""

import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from allranks.config.load import resolve_mapping
from allranks.plan.optimizer_state import step_copies
from allranks.train.optimizer import make_optimizer

SIZE, NUMBER = (64, 64), 24
KINDS = {
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
}
ONE_BY_ONE = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "sgd"), ""),
    **dict.fromkeys(
        (
            *("adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit", "paged_lion_8bit"),
            *("paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_8bit"),
        ),
        "bitsandbytes",
    ),
}
"""Optimizer -> the package that it is of."""


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", KINDS)
def test_a_step_over_all_at_once_takes_as_many_copies_as_are_counted(name, decay):
    parameters = with_gradients(NUMBER)
    optimizer = KINDS[name](parameters, lr=0.01, weight_decay=decay, foreach=True)
    counted = step_copies(name, decays=decay > 0, on_cpu=False)
    assert counted.of_all == pytest.approx(peak_of_step(optimizer) / (NUMBER * parameters[0].nbytes), abs=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_step_on_a_cpu_takes_as_many_copies_of_one_tensor_as_are_counted(name, decay, dtype):
    if ONE_BY_ONE[name]:
        pytest.importorskip(ONE_BY_ONE[name])
    module = torch.nn.Module()
    sizes = ((512, 256), (16, 256), (16, 256))
    for index, size in enumerate(sizes):
        module.register_parameter(str(index), *with_gradients(1, size, dtype))
    flat = {"base_model": "m", "datasets": [{"path": "d"}], "output_dir": "o"}
    cfg = resolve_mapping({**flat, "optimizer": name, "weight_decay": decay, "learning_rate": 0.01})
    optimizer = make_optimizer(cfg, module)
    counted = step_copies(name, decays=decay > 0, on_cpu=True).each_bytes(dtype.itemsize)
    assert counted == pytest.approx(peak_of_step(optimizer) / math.prod(sizes[0]), abs=0.5)


def with_gradients(number, size=SIZE, dtype=torch.float32):
    parameters = [torch.nn.Parameter(torch.randn(size, dtype=dtype)) for _ in range(number)]
    for parameter in parameters:
        parameter.grad = torch.randn(size, dtype=dtype)
    return parameters


def peak_of_step(optimizer):
    """Bytes that a step holds beyond what was there before it; the first one, which makes the state, has been."""
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        optimizer.step()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
