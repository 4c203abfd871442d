"""Ranks that wait in different collectives under one number, as their watchdogs tell: they do not call the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from allranks.doctor.candidates import BY_LIKELY_RULE, Candidate
from allranks.doctor.ruleset import LIKELY, Rule

_UNEQUAL = "unequal-collectives"
# Only operations in which all ranks give and get equally much.
_WORK = re.compile(
    r"WorkNCCL\(SeqNum=(?P<number>\d+), OpType=(?P<kind>ALLREDUCE|BROADCAST|REDUCE|BARRIER|_ALLGATHER_BASE"
    r"|_REDUCE_SCATTER_BASE), NumelIn=(?P<given>\d+), NumelOut=(?P<got>\d+)"
)
_RANK = re.compile(r"\[(?:[^\[\]]{0,60} )?Rank (\d+)\]")
_GROUP = re.compile(r"\[PG (?:ID |GUID )?(\d+)")


def differing_waits(symptoms: Sequence[Candidate], rules: Sequence[Rule]) -> list[Candidate]:
    """Those of `symptoms` that show it, as that cause: likely, for what group of ranks one was in is seldom told."""
    rule = next((one for one in rules if one.id == _UNEQUAL), None)
    if rule is None:
        return []
    waits: dict[tuple[str, str], dict[int, tuple[tuple[str, ...], Candidate]]] = {}
    for one in symptoms:
        if (work := _WORK.search(one.line.text)) is None:
            continue
        rank = one.line.rank
        if rank is None and (told := _RANK.search(one.line.text)):
            rank = int(told[1])
        if rank is not None:
            group = _GROUP.search(one.line.text)
            of_number = waits.setdefault((group[1] if group else "", work["number"]), {})
            of_number.setdefault(rank, (work.group("kind", "given", "got"), one))
    found = []
    for of_number in waits.values():
        if len({what for what, _ in of_number.values()}) > 1:
            found += [
                replace(one, rule=rule, support=BY_LIKELY_RULE, certainty=LIKELY) for _, one in of_number.values()
            ]
    return found
