"""Other ways to hang in a real run, and to be slow: what holds it up is said on every node, with the rank and its node.

test_live.py tries the first; each of these is put into ranks, or into the network and the processes of a node while it
trains.
"""

import time
from collections.abc import Callable

import pytest

from tests.cluster.injected import happened, inject
from tests.cluster.lab import Lab
from tests.cluster.moments import record_failure, start_by_hand
from tests.cluster.training import make_training

HANG_SECONDS = 10

# What is said of each: of the rank that differs, with its node, and where in the code it is.
SAID = {
    "deadlock": ("error: rank 1 (node 1, node1) never entered all_reduce of 12 float ", "in take"),
    "left out": (
        "ranks do not enter the same collectives: rank 1 (node 1, node1) has left out a collective of step 4: it has "
        "done that step, and rank 0, without which it cannot be done, only step 3; rank 0 (node 0) was aborted in a ",
        "stats.py:",
    ),
    "other shape": (
        "rank 0 (node 0) was aborted in a collective at ",
        " in other_shape: ",
        "rank 1 (node 1, node1)",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", SAID)
def test_what_holds_the_run_up_is_named_on_every_node(
    fault: str,
    lab: Lab,
    base_config: dict,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    keys = {"max_steps": 1000, "num_epochs": 1000, "hang_timeout": {"step": HANG_SECONDS}, "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **keys)
    env = inject(training, fault)
    terminals = start_by_hand(training, 29542, **env)
    outputs = training.finish(terminals, expect=[1, 1])
    record_failure(
        record_property,
        training.run.path,
        terminals,
        SAID[fault][0],
        fault=fault,
        injected=happened(training),
        deadline=HANG_SECONDS if fault == "deadlock" else 0,
    )
    for output in outputs:
        for said in SAID[fault]:
            assert said in output, output
        assert "failed first" not in output, output
    training.wait_until_gone()


def cut_one_direction(lab: Lab) -> None:
    lab.filter(1, "INPUT", "-s", lab.node(0).ip, "-j", "DROP")


def cut_the_ranks_off(lab: Lab) -> None:
    """The launchers still hear of each other."""
    ports = ("-m", "multiport", "!", "--ports", str(PORT))
    lab.filter(1, "INPUT", "-p", "tcp", "-s", lab.node(0).ip, *ports, "-j", "DROP")


PORT = 29543
NO_SIGN = "error: node 1 (node1) was lost: no sign of life for 10 s; "
NETWORK: dict[str, tuple[Callable[[Lab], None], str]] = {
    "node frozen": (lambda lab: lab.freeze(1), f"{NO_SIGN}its machine takes what is sent to it"),
    "link cut": (lambda lab: lab.cut(1), f"{NO_SIGN}nothing that is sent to it is acknowledged"),
    "one direction dropped": (cut_one_direction, f"{NO_SIGN}what is sent to it does not arrive"),
    "ranks cut off": (
        cut_the_ranks_off,
        "error: what rank 0 (node 0, node0) sends to rank 1 (node 1, node1) does not arrive",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", NETWORK)
def test_what_comes_between_nodes_is_told_from_nodes_that_do_not_run(
    fault: str,
    lab: Lab,
    base_config: dict,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    keys = {"max_steps": 1000, "num_epochs": 1000, "hang_timeout": {"step": HANG_SECONDS}, "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **keys)
    terminals = start_by_hand(training, PORT)
    training.wait_for_step(3, terminals[0])
    spoil, said = NETWORK[fault]
    injected = time.time()
    spoil(lab)
    (output,) = training.finish(terminals[:1], expect=[1])
    record_failure(
        record_property, training.run.path, terminals[:1], said, fault=fault, injected=injected, deadline=HANG_SECONDS
    )
    assert said in output, output
    lab.restore()
