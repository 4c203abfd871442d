"""In a trace for GPUs optimizers step as they do there."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.optimizer import _default_to_fused_or_foreach

from allranks.trace.nothing import as_on_gpu


def test_a_step_is_over_all_parameters_at_once():
    with FakeTensorMode():
        parameters = [torch.nn.Parameter(torch.empty(3)) for _ in range(2)]
        with as_on_gpu():
            _, at_once = _default_to_fused_or_foreach(parameters, differentiable=False)
        _, here = _default_to_fused_or_foreach(parameters, differentiable=False)
    assert at_once and not here
