"""The exam of `allranks doctor`: graded excerpts of public issues, healthy logs and near misses. `make exam` prints it.

Halves A and B are of threads by the hash of their address; the rules were written looking at half A only. Sets C to H
and J are of other threads: they were collected, graded and committed before they were first asked. I is a development
set, of further threads: graded before it was asked, but in batches, and what one batch missed was mended before the
next, so that its score says nothing of logs that nobody has seen. O is of our own runs of TRL and axolotl, broken on
purpose (`python -m tests.exam.breaking`).
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from allranks.doctor.broadly import spoken_of
from allranks.doctor.diagnosis import EXCEPTION, SURE, UNKNOWN, Diagnosis
from allranks.doctor.read_logs import diagnosis_of_text
from allranks.doctor.ruleset import all_rules

HERE = Path(__file__).parent
RIGHT, RIGHT_LIKELY, NOT_KNOWN, WRONG, WRONG_BUT_SURE = "right", "right, likely", "unknown", "wrong", "wrong but sure"
COLUMNS = (RIGHT, RIGHT_LIKELY, NOT_KNOWN, WRONG, WRONG_BUT_SURE)
OWN_RUNS = "o"
_NO_CAUSE = "unknown"


@dataclass(frozen=True)
class Question:
    id: str
    half: str
    family: str
    cause: str
    also: tuple[str, ...]
    rank: int | None
    log: str


def questions(halves: str = "ab") -> Iterator[Question]:
    for half in halves:
        for file in sorted((HERE / ("own-runs" if half == OWN_RUNS else f"half-{half}")).glob("*.toml")):
            for one in tomllib.loads(file.read_text(encoding="utf-8")).get("question", []):
                also = tuple(one.get("also", ()))
                yield Question(one["id"], half, file.stem, one["cause"], also, one.get("rank"), one["log"].strip("\n"))


def graded(question: Question) -> tuple[str, Diagnosis]:
    """How the doctor's answer to it is."""
    told = diagnosis_of_text(question.log)
    named = told.cause or told.symptom
    accepted = (question.cause, *question.also)
    if question.cause == _NO_CAUSE:
        if told.certainty == UNKNOWN or named in question.also:
            return RIGHT, told
        return (WRONG_BUT_SURE if told.certainty == SURE else WRONG), told
    if named in accepted:
        if question.rank is not None and told.rank not in (None, question.rank):
            return (WRONG_BUT_SURE if told.certainty == SURE else WRONG), told
        return (RIGHT if told.certainty == SURE or told.cause is None else RIGHT_LIKELY), told
    if told.cause is None:
        return (RIGHT if _NO_CAUSE in question.also else NOT_KNOWN), told
    return (WRONG_BUT_SURE if told.certainty == SURE else WRONG), told


def healthy() -> Iterator[tuple[str, Diagnosis]]:
    """Of logs in which nothing failed."""
    for file in sorted((HERE / "healthy").glob("*")):
        yield file.name, diagnosis_of_text(file.read_bytes())


def near_misses() -> Iterator[tuple[str, tuple[str, ...], Diagnosis]]:
    """(id, the causes that must not be named, answer) of logs that look like another failure than they are."""
    for file in sorted((HERE / "near-misses").glob("*.toml")):
        for one in tomllib.loads(file.read_text(encoding="utf-8")).get("near_miss", []):
            yield one["id"], tuple(one["not_causes"]), diagnosis_of_text(one["log"].strip("\n"))


def by_broad_wordings(halves: str) -> Counter[str]:
    """How the lines by which rules name a cause rightly are named by broad wordings alone, as if no rule knew them."""
    counts: Counter[str] = Counter()
    for question in questions(halves):
        grade, told = graded(question)
        if grade not in (RIGHT, RIGHT_LIKELY) or told.cause in (None, EXCEPTION) or told.is_broad:
            continue
        rule = spoken_of(told.evidence[0].text, all_rules())
        right = rule is not None and rule.answer in (question.cause, *question.also)
        counts[RIGHT if right else WRONG if rule else NOT_KNOWN] += 1
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the table; `--wrong` also each answer that is not right. Ends with 1 where one is wrong but sure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--halves", default="abcdefghijo", help="which: a to j, o or several")
    parser.add_argument("--wrong", action="store_true", help="print each answer that is not right")
    parser.add_argument("--nvrx", type=Path, metavar="SRC", help="ask NVRx's restart agent, too: src/ of its checkout")
    parser.add_argument("--broad", action="store_true", help="print what broad wordings alone would name")
    options = parser.parse_args(arguments)
    if options.broad:
        for grade, times in by_broad_wordings(options.halves).items():
            print(f"{grade}: {times}")
        return 0
    counts: Counter[tuple[str, str, str]] = Counter()
    for question in questions(options.halves):
        grade, told = graded(question)
        counts[question.half, question.family, grade] += 1
        if options.wrong and grade not in (RIGHT, RIGHT_LIKELY):
            said = told.evidence[0].text[:120] if told.evidence else ""
            print(
                f"{question.half}/{question.family} {question.id}: {question.cause}; {grade}: "
                f"{told.cause or told.symptom} rank {told.rank} | {said}"
            )
    bad = 0
    for half in options.halves:
        families = sorted({family for of, family, _ in counts if of == half})
        print(f"\nhalf {half.upper():22} {'all':>5} " + " ".join(f"{column:>14}" for column in COLUMNS))
        total: Counter[str] = Counter()
        for family in families:
            row = Counter({grade: counts[half, family, grade] for grade in COLUMNS})
            total.update(row)
            print(_row(family, row))
        print(_row("all", total))
        all_of = max(1, sum(total.values()))
        print(f"right: {100 * (total[RIGHT] + total[RIGHT_LIKELY]) / all_of:.1f} %")
        bad += total[WRONG_BUT_SURE]
    named = [(name, told) for name, told in healthy() if told.cause is not None]
    print(f"\nhealthy logs: {sum(1 for _ in healthy())}, of which a cause is named for {len(named)}")
    for name, told in named:
        print(f"  {name}: {told.cause} ({told.certainty}) {told.evidence[0].text[:120]}")
    missed = list(near_misses())
    fooled = [(id, causes, told) for id, causes, told in missed if told.cause in causes]
    print(f"near misses: {len(missed)}, of which {len(fooled)} are named")
    for id, _, told in fooled:
        print(f"  {id}: {told.cause} ({told.certainty}) {told.evidence[0].text[:120]}")
    if options.nvrx:
        from tests.exam.nvrx import print_beside

        print_beside(options.nvrx, options.halves)
    return 1 if bad or named or fooled else 0


def _row(name: str, row: Counter[str]) -> str:
    return f"{name:28} {sum(row.values()):5} " + " ".join(f"{row[column]:14}" for column in COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
