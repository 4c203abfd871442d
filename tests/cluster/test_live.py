"""Ranks that hang in a real run: who the others wait for is named on every node, and the run ends, without a human."""

import json
from collections.abc import Callable

import pytest

from allranks.live.from_events import table_of
from tests.cluster.injected import happened, inject
from tests.cluster.lab import Lab
from tests.cluster.moments import record_failure, start_by_hand
from tests.cluster.training import make_training

HANG_SECONDS = 10


def test_the_rank_that_does_not_come_is_named_on_every_node_while_the_others_wait(
    lab: Lab,
    base_config: dict,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    keys = {"max_steps": 1000, "num_epochs": 1000, "hang_timeout": {"step": HANG_SECONDS}, "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **keys)
    env = inject(training, "never comes")
    terminals = start_by_hand(training, 29541, **env)
    outputs = training.finish(terminals, expect=[1, 1])
    told = record_failure(
        record_property,
        training.run.path,
        terminals,
        "error: rank 1 ",
        fault="never comes",
        injected=happened(training),
        deadline=HANG_SECONDS,
    )
    assert (told.cause, told.certainty, told.rank, told.node) == ("hang", "sure", 1, "node1"), told
    for output in outputs:
        [said] = [line for line in output.splitlines() if line.startswith("error: ")]
        assert said.startswith("error: rank 1 "), output
        assert "never entered all_reduce" in said and "in never_comes" in said, output
        assert "rank 1 (node 1, node1)" in output
    training.wait_until_gone()
    table = table_of(training.run)
    assert table.ended is not None
    assert table.ended.exit_code == 1
    assert table.ended.finding is not None
    assert (table.ended.finding.code, table.ended.finding.who.rank) == ("hang", 1), outputs[0]
    assert [node.host for node in table.nodes] == ["node0", "node1"]
    (diagnosis,) = training.run.path.glob("evidence/*/diagnosis.json")
    assert json.loads(diagnosis.read_text())["who"]["rank"] == 1
    assert len(list(diagnosis.parent.glob("node-*"))) == 2
