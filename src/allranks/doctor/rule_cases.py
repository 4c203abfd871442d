"""Do the rules name what they are to name? Every one is tried, beside all others, on the logs that come with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from allranks.doctor.diagnose import FIELD
from allranks.doctor.diagnosis import Diagnosis
from allranks.doctor.read_logs import diagnosis_of_text
from allranks.doctor.reading.index import Index
from allranks.doctor.ruleset import (
    CAUSE,
    CONSEQUENCE,
    RETRIED,
    Rule,
    all_rules,
    load_rules,
    problems_of_files,
    rule_files,
)


def problems_of_rules(files: Sequence[Path] = ()) -> list[str]:
    """All that is wrong with the rules of these files, or of all: as data, and on the logs that come with them.

    Rules of other files are tried beside those that come with allranks, in whose place they are if an id is the same.
    """
    files = list(files) or rule_files()
    if problems := problems_of_files(files):
        return problems
    tried = [(file, rule) for file in files for rule in load_rules(file)]
    ids = {rule.id for _, rule in tried}
    index = Index([rule for rule in all_rules() if rule.id not in ids] + [rule for _, rule in tried])
    known = ids | {rule.id for rule in all_rules()}
    return [
        problem for file, rule in tried for problem in (*_of_names(file, rule, known), *_on_its_logs(file, rule, index))
    ]


def _of_names(file: Path, rule: Rule, known: set[str]) -> list[str]:
    """Names that stand for nothing: of rules that it explains, and of what its texts take from the line."""
    where = f"{file}: rule {rule.id}"
    groups = {name for pattern in rule.patterns for name in pattern.regex.groupindex}
    texts = (rule.title, rule.meaning, rule.remedy, rule.not_proven, rule.look_at)
    unnamed = {name for text in texts for name in FIELD.findall(text)} - groups
    return [
        *(f"{where}: explains: no rule has the id {name}" for name in rule.explains if name not in known),
        *(f"{where}: {{{name}}}: no pattern has a group of that name" for name in sorted(unnamed)),
    ]


def _on_its_logs(file: Path, rule: Rule, index: Index) -> list[str]:
    where = f"{file}: rule {rule.id}"
    problems = []
    for number, case in enumerate(rule.cases, 1):
        told = diagnosis_of_text(case.strip("\n"), index)
        if not _names(told, rule):
            problems.append(f"{where}: case {number}: the answer is {_answer(told)}")
    for number, near_miss in enumerate(rule.near_misses, 1):
        told = diagnosis_of_text(near_miss.strip("\n"), index)
        if rule.answer in (told.cause, told.symptom) or (rule.kind == CONSEQUENCE and _names(told, rule)):
            problems.append(f"{where}: near miss {number}: it is named: {_answer(told)}")
    return problems


def _names(told: Diagnosis, rule: Rule) -> bool:
    if rule.kind in (CAUSE, RETRIED):
        return told.cause == rule.answer
    if rule.kind == CONSEQUENCE:
        return any(one.id == rule.id for one in told.explained)
    return told.cause is None and told.symptom == rule.id


def _answer(told: Diagnosis) -> str:
    said = f" by {told.evidence[0].text.strip()[:200]!r}" if told.evidence else ""
    return f"{told.cause or told.symptom or 'unknown'}{said}"
