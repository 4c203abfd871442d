"""The tables, the picture and the CSV of a scaling."""

import csv
import io
import json

import pytest

from allranks.exit_codes import DONE, FAILED
from allranks.scaling.efficiency import scaled
from allranks.scaling.picture import bars
from allranks.scaling.report import Outcome, Scaling, as_csv, as_text
from tests.unit.scaling.test_scaling_measured import size


def scaling(*sizes, failed=(), planned=None):
    outcomes = [*(Outcome(one.nodes, one) for one in sizes), *failed]
    return Scaling("c.yaml", "FSDP2", False, 5, outcomes, scaled(sizes, planned_seconds=planned), "")


def test_each_size_has_its_row_and_the_loss_its_place():
    text = as_text(scaling(size(1, 1.0), size(2, 1.25, data=0.1), planned={1: 1.0, 2: 1.2}))
    rows = [line.split() for line in text.splitlines()]
    assert ["2", "2", "1,600", "1.25", "1.60", "80", "%", "83", "%"] in rows
    assert ["2", "0.0", "12.0", "8.0", "0.0", "1.0", "MB", "a", "step"] in [row[:9] for row in rows]


def test_a_size_that_failed_is_named_and_the_others_are_told():
    told = scaling(size(1, 1.0), failed=[Outcome(4, None, "node 2 has no disk", 3)])
    text = as_text(told)
    assert "failed on 4 nodes (exit code 3): node 2 has no disk" in text and "1,000" in text
    assert told.exit_code == 3 and scaling(size(1, 1.0)).exit_code == DONE
    nothing = scaling(failed=[Outcome(1, None, "no", FAILED)])
    assert as_text(nothing).strip() == "failed on 1 node (exit code 1): no"


def test_what_makes_figures_doubtful_is_said():
    slow = size(2, 1.0)
    slow = type(slow)(**{**vars(slow), "all_seconds": 1.3, "slowest": 9.0, "steps": 4})
    text = as_text(scaling(size(1, 1.0), slow))
    assert "on 2 nodes some steps were slow: the mean of all is 1.3 s, the longest took 9 s" in text
    assert "on 2 nodes only 4 steps count" in text


def test_unknown_work_is_a_question_mark_and_said():
    unknown = [size(1, 1.0, compute=None, stragglers=None), size(2, 1.5, compute=None, stragglers=None)]
    text = as_text(scaling(*unknown))
    assert "?" in text and "compute is part of communication" in text
    assert "forward passes" in as_text(scaling(size(1, 1.0, on_gpu=True), size(2, 1.1, on_gpu=True)))


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [40, 72, 100])
def test_bars_fit_and_grow_with_the_speed(width, ascii_only):
    lines = bars(scaled([size(1, 1.0), size(2, 1.1), size(4, 2.0)]), width=width, ascii_only=ascii_only).splitlines()
    assert max(map(len, lines)) <= max(width, 58) and len(lines) == 4
    if ascii_only:
        assert all(line.isascii() for line in lines)
    full = "#" if ascii_only else "█"
    lengths = [line.count(full) for line in lines[1:]]
    assert lengths == sorted(lengths) and lengths[2] < 2.4 * lengths[1]
    # The ideal of four nodes stands at the end: they reach half of it.
    assert lines[3].index("|" if ascii_only else "│") == pytest.approx(2 * lengths[2], abs=5)


def test_one_size_has_no_picture():
    assert bars(scaled([size(2, 1.0)])) == ""


def test_csv_and_json_have_the_same_numbers():
    told = scaling(size(1, 1.0), size(2, 1.25), failed=[Outcome(4, None, "broken", 1)])
    rows = list(csv.DictReader(io.StringIO(as_csv(told))))
    message = json.loads(json.dumps(told.to_message()))
    assert [int(row["nodes"]) for row in rows] == [1, 2, 4]
    for row, one in zip(rows[:2], message["sizes"][:2], strict=True):
        for key in ("tokens_per_second", "efficiency", "lost_to_communication", "seconds"):
            assert float(row[key]) == one[key]
    assert rows[2]["ok"] == "False" and rows[2]["efficiency"] == ""
    assert (message["scaling"], message["exit_code"]) == ("weak", 1) and message["sizes"][2]["error"] == "broken"


def test_an_outcome_is_read_as_it_was_told():
    for one in (Outcome(2, size(2, 1.0)), Outcome(2, None, "broken", 3)):
        assert Outcome.from_message(json.loads(json.dumps(one.to_message()))) == one
    for wrong in ({}, {"nodes": 1}, {"nodes": 1, "exit_code": 0, "ok": True}):
        with pytest.raises(ValueError):
            Outcome.from_message(wrong)
