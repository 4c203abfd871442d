"""What is traced of a plan's row is whole: what no trace sees comes from the closed form."""

from dataclasses import replace

import pytest

from allranks.config.load import resolve_mapping
from allranks.plan.hardware import find_device, find_link
from allranks.plan.held_memory import held
from allranks.plan.lengths import full
from allranks.plan.memory import at_step
from allranks.plan.table import Machines, rows
from allranks.plan.workload import RankMemory
from allranks.plan.workloads import workloads
from allranks.trace import beside
from tests.planned import CONFIG, MODEL


@pytest.mark.parametrize("activations", [0.0, 1e12])
@pytest.mark.parametrize(
    ("optimizer", "is_traced"),
    [("adamw_torch_fused", True), ("adamw_bnb_8bit", False), ("lion_8bit", False), ("adafactor", False)],
)
def test_state_and_step_of_an_optimizer_that_cannot_be_traced_are_counted(
    monkeypatch, optimizer, is_traced, activations
):
    cfg = resolve_mapping({**CONFIG, "optimizer": optimizer})
    machines = Machines(2, 8, find_device("h100-80gb"), find_link("100gbit"))
    found = workloads(cfg, MODEL, num_nodes=2, gpus_per_node=8)
    row = next(one for one in rows(found, machines, 64, full(cfg.data.sequence_len)) if one.is_own)
    seen = {"parameters": 1e9, "gradients": 1e9, "optimizer": 7.0 if is_traced else 0.0, "activations": activations}
    nothing = dict.fromkeys(("logits", "communication", "reserve"), 0.0)
    monkeypatch.setattr(beside, "traced_memory", lambda *args, **options: RankMemory(**seen, **nothing))
    told = beside.traced(row, cfg, MODEL, tokens=cfg.data.sequence_len).memory
    assert told is not None and told.reserve > 0 and told.host == row.memory.host
    if is_traced:
        assert told.optimizer == 7.0
    elif activations:  # the moment that was traced, with the state beside it
        assert (told.optimizer, told.activations) == (held(row.workload).optimizer, activations)
    else:  # the step takes more
        assert replace(told, reserve=0.0, host=0.0) == at_step(row.workload)
