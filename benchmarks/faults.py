"""How many seconds every fault that the lab's tests put into a real run takes until the terminals name it.

    python -m benchmarks.faults [-k EXPRESSION] [--no-report]

Runs those tests of tests/cluster that record a fault (tests/cluster/moments.py), thorough ones, too: root, and an
hour on 2 cores. A second counts from the moment at which the fault may be noticed: that of a death, or the end of a
time-out that the test sets (`hang_timeout`), to the moment at which the last terminal has the line that names it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from tests.cluster.moments import PROPERTY

TESTS = Path(__file__).parents[1] / "tests" / "cluster"
AIMS = "10 s after the deadline of what hangs, 20 s after a death, 10 s after the last node came for what is checked"
_WAYS = {"train": "allranks train", "run": "allranks run", "check": "allranks check"}


@dataclass
class Outcome:
    """What a test recorded, and how it ended: passed, failed or skipped."""

    test: str
    result: str = "passed"
    faults: list[dict[str, Any]] = field(default_factory=list)


class Recorded:
    """A plugin of pytest: of the tests only those that record, and what they do."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        recording = [item for item in items if "record_property" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in recording])
        items[:] = recording

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = self.outcomes.setdefault(report.nodeid, Outcome(report.nodeid.rpartition("/")[2]))
        if report.outcome != "passed":
            outcome.result = report.outcome
        if report.when == "teardown":
            outcome.faults = [json.loads(str(value)) for name, value in report.user_properties if name == PROPERTY]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only these tests, in pytest's words")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args(arguments)

    from tests.cluster.lab import missing

    if reason := missing():
        sys.exit(f"error: {reason}")
    load = os.getloadavg()[0]
    recorded = Recorded()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-k", options.k, str(TESTS)], plugins=[recorded])
    lines = table(list(recorded.outcomes.values()))
    print("\n".join(lines))
    if not options.no_report:
        print(f"report: {_write_report(lines, load, options)}")
    return int(code)


def table(outcomes: list[Outcome]) -> list[str]:
    """A row for each fault, and for each test that ended before it recorded one."""
    head = ["fault", "way", "terminals", "cause", "rank", "node", "deadline, s", "named after it, s", "test"]
    rows = []
    for outcome in outcomes:
        rows += [_row(fault, outcome.result) for fault in outcome.faults]
        if not outcome.faults:
            rows.append([outcome.test, *["-"] * (len(head) - 2), outcome.result])
    return report.table(head, rows)


def _row(fault: dict[str, Any], result: str) -> list[str]:
    seconds = fault["seconds"]
    unnamed = sum(one is None for one in seconds)
    # The last terminal counts, and one that never names it is never done.
    latest = f"not on {unnamed} of them" if unnamed else f"{max(seconds):.1f}" if seconds else "-"
    named = ["-" if fault[key] is None else str(fault[key]) for key in ("cause", "rank", "node")]
    return [fault["fault"], _WAYS[fault["way"]], str(len(seconds)), *named, f"{fault['deadline']:g}", latest, result]


def _write_report(table: list[str], load: float, options: argparse.Namespace) -> Path:
    facts, today = report.machine(), report.today()
    hardware = report.hardware(facts)
    more = f" -k {options.k!r}" if options.k else ""
    lines = [
        f"# Faults in real runs, and how long until they are named, {today}",
        "",
        f"`python -m benchmarks.faults{more}` on {hardware}, all nodes of the lab and their ranks together; load "
        f"average before: {load:.1f}. Aims: {AIMS}.",
        "",
        "Each fault is put into a run while it goes on. Its seconds count from the moment at which it may be noticed "
        "(the deadline, 0 for a death) to the line that names it, on the last of the terminals. Cause, rank and node "
        "are those of `allranks doctor`, or of the check; a dash is what cannot be known. Tests assert what is "
        "named, and no seconds.",
        "",
        *table,
        *report.settings("Machine", facts),
    ]
    return report.saved("faults", hardware, lines, part=options.k)


if __name__ == "__main__":
    sys.exit(main())
