"""The table of a run as a message: what is written is read again, and no message breaks the reader."""

import json
import math
import random

import pytest

from allranks.findings import Finding, Who
from allranks.live import LiveTable, NodeState, RankState
from allranks.live.state import MAX_RANKS, LiveEnd
from allranks.live.table import table_of_nodes

TABLE = LiveTable(
    run_id="20261128-abc",
    t=1_790_000_000.5,
    nodes=(
        NodeState(
            node=0,
            host="node0",
            t=1_790_000_000.25,
            ranks=(
                RankState(rank=0, pid=17, phase="train", step=3, since=1_790_000_000.0, loss=2.5, step_seconds=0.5),
                RankState(rank=1, process_state="gone", exit_code=-9),
            ),
            bytes_in=1e6,
            launcher_pid=5,
            warnings=("its GPUs are not known",),
        ),
        NodeState(node="host7"),
    ),
    step=3,
    num_steps=10,
    stragglers=(Finding("straggler", "rank 1 is slow", who=Who(0, 1, "node0")),),
    overdue=(Finding("hang", "rank 0 hangs"),),
    ended=LiveEnd(exit_code=1, finding=Finding("hang", "rank 0 hangs")),
)


def test_what_is_written_is_read_again() -> None:
    assert LiveTable.from_message(json.loads(json.dumps(TABLE.to_message()))) == TABLE
    assert [rank.rank for rank in TABLE.ranks] == [0, 1]


def test_a_loss_that_is_no_number_leaves_the_message_json() -> None:
    rank = RankState(rank=0, loss=math.nan, step_seconds=math.inf)
    assert "NaN" not in json.dumps(rank.to_message())
    assert RankState.from_message(rank.to_message()) == RankState(rank=0)


def test_a_later_version_and_other_types_are_passed_over() -> None:
    message = {**TABLE.to_message(), "version": 9, "weather": "fine", "step": "three", "eta_seconds": 1}
    table = LiveTable.from_message(message)
    assert table.step is None
    assert table.eta_seconds == 1.0
    assert table.nodes == TABLE.nodes


@pytest.mark.parametrize("message", [None, [], 3, "x", {}, {"nodes": {}}, {"nodes": None}])
def test_what_is_no_table_is_refused(message: object) -> None:
    with pytest.raises(ValueError, match="it "):
        LiveTable.from_message(message)


def test_a_table_is_bounded_and_free_of_control_characters() -> None:
    ranks = [{"rank": rank, "phase": "x" * 10_000 + "\x1b[2J"} for rank in range(3 * MAX_RANKS)]
    node = NodeState.from_message({"node": "a\x1b]0;b", "ranks": ranks, "warnings": ["\x07" * 5000] * 5000})
    assert len(node.ranks) == MAX_RANKS
    assert len(json.dumps(node.to_message())) < 2**19
    assert "\\u001b" not in json.dumps(node.to_message())


def test_no_message_breaks_the_reader() -> None:
    """Any value in any place gives a table or a ValueError, and a table is one that can be written."""
    dice = random.Random(4)
    values = [None, True, -1, 2**70, 1e308, -0.5, math.nan, "", "\0", [], [[]], {}, {"rank": -1}, {"rank": True}]

    def spoilt(value: object) -> object:
        if dice.random() < 0.05:
            return dice.choice(values)
        if isinstance(value, dict):
            return {key: spoilt(one) for key, one in value.items()}
        return [spoilt(one) for one in value] if isinstance(value, list) else value

    for _ in range(500):
        try:
            table = LiveTable.from_message(spoilt(TABLE.to_message()))
        except ValueError:
            continue
        json.dumps(table.to_message(), allow_nan=False)


def test_the_step_and_the_loss_of_a_table_are_of_one_step() -> None:
    """Nodes tell of their ranks at different moments."""
    ahead = RankState(rank=0, step=8, loss=1.5, tokens_per_second=90.0)
    behind = RankState(rank=1, step=7, loss=2.5, tokens_per_second=80.0)
    states = [NodeState(node=rank, ranks=(one,)) for rank, one in enumerate((ahead, behind))]
    table = table_of_nodes("run", 1.0, states)
    assert (table.step, table.loss, table.tokens_per_second) == (7, 2.5, 80.0)
    assert table_of_nodes("run", 1.0, [NodeState(node=0, ranks=(RankState(rank=0),))]).loss is None
