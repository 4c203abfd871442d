"""What goes wrong on one rank of two nodes while they train: every terminal names the rank and its node, and the doctor
says the same of what is left.

Those that make ranks hang are in test_live.py and test_hangs.py, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from allranks.doctor import causes
from tests.cluster.injected import happened, inject
from tests.cluster.lab import Lab
from tests.cluster.moments import record_failure, start_by_hand
from tests.cluster.training import make_training

HANG_SECONDS = 10


@dataclass(frozen=True)
class Fault:
    """What every terminal says of it, and what the doctor does: the cause, of which rank, and how sure it is."""

    name: str
    says: tuple[str, ...]
    cause: str
    certainty: str = "sure"
    rank: int | None = 1
    """None where the doctor cannot know it."""
    exit_code: int = 1
    deadline: float = 0.0
    """Seconds after it happened, of what is only noticed when somebody has waited so long."""
    keys: dict[str, Any] = field(default_factory=dict)


FAULTS = (
    Fault("exception", ("rank 1 (node 1, node1) failed first: ValueError: bad batch 17",), causes.RANK_ERROR, "likely"),
    Fault("killed", ("rank 1 (node 1) failed first: killed by SIGKILL",), causes.RANK_KILLED),
    Fault("not a number", ("step 4: the loss is not finite (nan) on rank 1",), "nan-loss", "likely"),
    Fault(
        "other weights",
        ("after step 1: replicas differ: model.embed_tokens.weight is one on rank 0 and another on rank 1",),
        causes.RANK_ERROR,
        "likely",
        rank=None,
        exit_code=3,
    ),
    Fault(
        "other collective",
        ("error: perhaps: ranks entered different operations", "rank 1 (node 1, node1): broadcast of 12 float"),
        causes.HANG,
        "likely",
        deadline=HANG_SECONDS,
    ),
    Fault(
        "blocked data",
        ("error: rank 1 (node 1, node1) never entered all_reduce of ", "in never_comes"),
        causes.HANG,
        deadline=HANG_SECONDS,
    ),
    Fault(
        "tokenizes",
        ("rank 1 (node 1, node1) did not come to the collective in which rank 0 (node 0) has waited in vain",),
        causes.HANG,
        deadline=8,
        keys={"ddp_timeout": 8, "hang_timeout": {"step": 100}},
    ),
)


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_one_rank_is_named_on_every_node_and_by_the_doctor(
    fault: Fault,
    lab: Lab,
    base_config: dict,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    keys = {"max_steps": 1000, "num_epochs": 1000, "hang_timeout": {"step": HANG_SECONDS}, "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **{**keys, **fault.keys})
    env = inject(training, fault.name)
    terminals = start_by_hand(training, 29545, **env)
    outputs = training.finish(terminals, expect=[fault.exit_code] * 2)
    told = record_failure(
        record_property,
        training.run.path,
        terminals,
        fault.says[0],
        fault=fault.name,
        injected=happened(training),
        deadline=fault.deadline,
    )
    for output in outputs:
        for said in fault.says:
            assert said in output, output
    assert (told.cause, told.certainty) == (fault.cause, fault.certainty), told
    assert fault.rank is None or told.rank == fault.rank, told
    training.wait_until_gone()
