"""Do the rules name what they are to name? Every one is tried on the logs that come with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from allranks.doctor.ruleset import Rule, load_rules, problems_of_files, rule_files


def problems_of_rules(files: Sequence[Path] = ()) -> list[str]:
    """All that is wrong with the rules of these files, or of all: as data, and on the logs that come with them."""
    files = list(files) or rule_files()
    if problems := problems_of_files(files):
        return problems
    return [problem for file in files for rule in load_rules(file) for problem in _on_its_logs(file, rule)]


def _on_its_logs(file: Path, rule: Rule) -> list[str]:
    where = f"{file}: rule {rule.id}"
    problems = []
    for number, case in enumerate(rule.cases, 1):
        if not any(rule.match(line) for line in case.splitlines()):
            problems.append(f"{where}: case {number}: no line matches")
    for number, near_miss in enumerate(rule.near_misses, 1):
        if not rule.context and (lines := [line for line in near_miss.splitlines() if rule.match(line)]):
            problems.append(f"{where}: near miss {number}: is matched: {lines[0]}")
    return problems
