"""The table as text: it fits its width, folds what is alike, marks who is not, and holds no control characters."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from simulated_runs import T, simulated

from allranks.findings import Finding, Who
from allranks.live import LiveTable, NodeState, RankState
from allranks.live.picture import MAX_ROWS, line, picture
from allranks.live.state import LiveEnd

DOC = Path(__file__).parents[3] / "docs" / "live.md"


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize("num_ranks", [1, 3, 16, 512])
def test_a_picture_fits_its_width_and_a_screen(num_ranks: int, width: int) -> None:
    lines = picture(simulated(num_ranks, slow=0, stopped=num_ranks - 1), width=width).split("\n")
    assert max(map(len, lines)) <= width
    assert len(lines) <= MAX_ROWS + 12


@pytest.mark.parametrize("num_ranks", [3, 16, 512])
def test_at_80_columns_all_that_matters_is_there(num_ranks: int) -> None:
    text = picture(simulated(num_ranks), width=80)
    head = next(one for one in text.split("\n") if one.startswith("  node"))
    for column in ("node", "rank", "phase", "step", "for", "data", "mem", "GPU", "in/s", "out/s"):
        assert column in head.split()
    for whole in ("step 37 of 1,200", "loss 2.3456", "187,234 tokens/s", "MFU 41.3 %", "left", "attempt 2"):
        assert whole in text


def test_ranks_that_are_alike_share_a_line_and_others_do_not() -> None:
    rows = [one for one in picture(simulated(512, slow=77, stopped=300), width=140).split("\n") if "train" in one]
    assert len(rows) == 3
    assert [row[0] for row in rows] == [" ", "*", "!"]
    assert "0-76,78-299,301-511" in rows[0] and " 77 " in rows[1] and " 300 " in rows[2] and "stopped" in rows[2]


def test_every_rank_is_in_exactly_one_line_however_different_they_are() -> None:
    table = simulated(512)
    chance = random.Random(3)
    nodes = tuple(
        replace(
            node,
            ranks=tuple(replace(one, step=chance.randrange(9999), phase=f"p{one.rank % 40}") for one in node.ranks),
        )
        for node in table.nodes
    )
    lines = picture(replace(table, nodes=nodes), width=100).split("\n")
    assert "and 200 more ranks in 16 more groups: --json shows all" in lines  # 40 phases, 24 lines; 12 or 13 in each


def test_who_is_marked_stays_in_sight_where_not_all_are() -> None:
    table = simulated(512, stopped=511)
    nodes = tuple(
        replace(node, ranks=tuple(replace(one, phase=f"p{one.rank}") for one in node.ranks)) for node in table.nodes
    )
    lines = picture(replace(table, nodes=nodes), width=80).split("\n")
    assert sum(line.startswith("! 63 ") and " 511 " in line for line in lines) == 1


def test_what_is_not_known_has_no_column() -> None:
    text = picture(LiveTable(nodes=(NodeState(node=0, ranks=(RankState(rank=0, phase="model"),)),)), width=140)
    assert "GPU" not in text and "step 0" not in text
    assert "no step is done yet: model" in text
    done = LiveTable(nodes=(NodeState(node=0, ranks=(RankState(rank=0, phase="done"),)),))
    assert "no step was left to do" in picture(done, width=140)


def test_how_it_ended_is_said_with_its_reason() -> None:
    end = LiveEnd(exit_code=1, finding=Finding("hang", "rank 3 hung", who=Who(0, 3), remedy="look there"))
    text = picture(replace(simulated(3), ended=end))
    assert "with exit code 1: rank 3 hung" in text and "look there" in text
    assert "rank 3 hung" in line(replace(simulated(3), ended=end)) and "\n" not in line(
        replace(simulated(3), ended=end)
    )


HOSTILE = ["\x1b[2J", "\x9b31m", "\u202e", "\r", "\0", "\x07", "漢" * 200, "a" * 5000, "\ud800", "\x1b]0;x\x07"]


def test_no_message_puts_a_control_character_on_the_terminal_or_breaks_the_width() -> None:
    chance = random.Random(7)

    def value(depth: int = 0) -> object:
        kinds = [
            None,
            True,
            chance.choice(HOSTILE),
            chance.choice(HOSTILE),
            -(2**62),
            2**62,
            1e308,
            -1e308,
            10**400,
            0.1,
        ]
        if depth < 3:
            kinds += [[value(depth + 1) for _ in range(3)], {"what": chance.choice(HOSTILE), "code": "x"}]
        return chance.choice(kinds)

    template = simulated(16, slow=3, stopped=5).to_message()

    def spoiled(message: object) -> object:
        if chance.random() < 0.15:
            return value()
        if isinstance(message, dict):
            return {key: spoiled(one) for key, one in message.items()}
        return [spoiled(one) for one in message] if isinstance(message, list) else message

    shown = 0
    for _ in range(400):
        message = {key: spoiled(one) for key, one in template.items()}
        try:
            table = LiveTable.from_message(message)
        except ValueError:
            continue
        shown += 1
        for width in (40, 80):
            lines = picture(table, width=width, notes=[chance.choice(HOSTILE)]).split("\n")
            assert max(map(len, lines)) <= width
            assert all(" " <= char <= "~" or char == "…" for one in lines for char in one)
        assert "\x1b" not in json.dumps(line(table), ensure_ascii=False)
    assert shown > 100


@pytest.mark.parametrize(
    ("num_ranks", "width", "marked"),
    [
        (3, 80, {}),
        (16, 140, {"slow": 5}),
        (512, 80, {"slow": 77, "stopped": 300}),
        (512, 140, {"slow": 77, "stopped": 300}),
    ],
)
def test_the_pictures_in_the_documentation_are_those_of_the_code(num_ranks: int, width: int, marked: dict) -> None:
    assert T > 0
    text = picture(simulated(num_ranks, **marked), width=width)
    assert f"```text\n{text}\n```" in DOC.read_text(encoding="utf-8"), text
