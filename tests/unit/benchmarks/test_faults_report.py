"""What tests record of faults is read from pytest, and becomes the rows of a report."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.faults import Outcome, Recorded, table
from tests.cluster.moments import PROPERTY, Terminal, record_fault


def recorded(**keys: object) -> dict:
    found: dict[str, object] = {}
    fault = {"fault": "killed", "way": "train", "injected": 100.0, "deadline": 10.0, "told": [111.5, 113.25]}
    record_fault(found.__setitem__, **{**fault, "cause": "rank-killed", "rank": 1, "node": "node1", **keys})
    return json.loads(str(found[PROPERTY]))


def cells(outcome: Outcome) -> list[str]:
    row = table([outcome])[2]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_last_terminal_counts_from_the_deadline():
    row = cells(Outcome("test_x.py::test_one", "passed", [recorded()]))
    assert row == ["killed", "allranks train", "2", "rank-killed", "1", "node1", "10", "3.2", "passed"]


def test_a_terminal_that_never_names_it_and_what_cannot_be_known_are_said():
    row = cells(Outcome("test_x.py::test_one", "failed", [recorded(told=[111.5, None], rank=None, node=None)]))
    assert row[3:] == ["rank-killed", "-", "-", "10", "not on 1 of them", "failed"]
    assert cells(Outcome("test_x.py::test_one", "failed"))[0] == "test_x.py::test_one"


def test_only_tests_that_record_are_run(tmp_path: Path):
    (tmp_path / "test_two.py").write_text(
        "import json\n"
        "def test_records(record_property):\n"
        f"    record_property({PROPERTY!r}, json.dumps({recorded()}))\n"
        "    assert False\n"
        "def test_other(): raise SystemExit('never')\n"
    )
    plugin = Recorded()
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    pytest.main([*options, str(tmp_path)], plugins=[plugin])
    (outcome,) = plugin.outcomes.values()
    assert (outcome.result, outcome.faults) == ("failed", [recorded()])


def test_a_terminal_keeps_the_moment_of_each_line():
    code = "import time; print('one', flush=True); time.sleep(0.2); print('two')"
    began = time.time()
    terminal = Terminal(subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE))
    one = terminal.wait_for("one")
    assert terminal.finish() == "one\ntwo\n" and terminal.returncode == 0
    two = terminal.moment_of("two")
    assert two is not None and began <= one < two <= time.time()
    assert terminal.moment_of("three") is None
    with pytest.raises(AssertionError, match="nowhere 'three'"):
        terminal.wait_for("three")
