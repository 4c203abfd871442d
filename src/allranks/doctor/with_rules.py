"""What a rule knows of a failure, added where a launcher knows no more than that a rank failed."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

from allranks.doctor import causes
from allranks.doctor.attempt import Started
from allranks.doctor.diagnosis import EXCEPTION, LIKELY, Diagnosis
from allranks.doctor.log_tail import read_from
from allranks.doctor.of_run import BARE, is_its_crash, knows_more
from allranks.doctor.read_logs import diagnosis_of_text
from allranks.doctor.verdict import Verdict
from allranks.findings import Finding
from allranks.listing import printable

_LOOKED_AT = 2**20  # characters at the end of its log
_LONGEST = 500  # characters of what is added


def with_rules(verdict: Verdict, started: Started) -> Verdict:
    """`verdict` with what its failure means and what to do, by the failed rank's own log: two lines at most."""
    if verdict.reason is None or not verdict.message:
        return verdict
    lines = known_by_rules(verdict.reason, started, said=verdict.message)
    return replace(verdict, message="\n  ".join([verdict.message, *lines]))


def known_by_rules(reason: Finding, started: Started, *, said: str) -> list[str]:
    """What `reason`, of this node, means and what to do, as far as `said` does not say it: two lines at most."""
    told = None
    if reason.code in {*BARE, causes.RANK_KILLED} and started.node == reason.known_at:
        with contextlib.suppress(Exception):  # the verdict is needed, whatever becomes of what would be added to it
            told = _told(reason, started)
    if told is None:
        return []
    first_action = re.split(r"(?<=[.;:]) ", told.remedy)[0].rstrip(";:")
    word = "perhaps" if told.certainty == LIKELY else "that is"
    more = f"{word}: {told.title}" if told.title not in said else ""
    todo = f"what helps: {first_action}" if first_action and first_action not in said else ""
    return [printable(" ".join(line.split()), _LONGEST) for line in (more, todo) if line]


def _told(reason: Finding, started: Started) -> Diagnosis | None:
    """What the rank said of itself goes before what it printed: that has all it ever warned of."""
    run, node, rank = started.run, started.node, reason.who.rank
    log = run.log(node, rank) if rank is not None else run.agent_log(node)
    for text in (reason.said, read_from(log, started.log_start(log))[-_LOOKED_AT:]):
        told = diagnosis_of_text(text)
        told = replace(told, rank=None) if rank is not None else told  # a rank's own log is of no other
        if told.is_known:
            more = told.cause != EXCEPTION and (knows_more(reason, told) or is_its_crash(reason, told))
            return told if more else None
    return None
