"""What is looked for in a log: the wordings of all rules, and what tells how far a run came and how it ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from allranks.doctor.literals import literals
from allranks.doctor.reading.needles import Needles
from allranks.doctor.reading.tracebacks import HEADER, ORPHAN
from allranks.doctor.ruleset import Pattern, Rule

PATTERN, CONTEXT, CONTRADICTION = "pattern", "context", "contradiction"
TRACEBACK, EXCEPTION, PROGRESS, DONE, CONNECTED, FAILED_FIRST, ENDED = (
    "traceback",
    "exception",
    "progress",
    "done",
    "connected",
    "failed-first",
    "ended",
)

_OWN = {
    TRACEBACK: (re.escape(HEADER),),
    # What is raised, by the end of its type's name: looked at only where it begins the line.
    EXCEPTION: (r"(?:Error|Exception|Interrupt|Timeout|Killed): ", r"(?:Error|Exception|Interrupt)$"),
    PROGRESS: (
        r"'loss': ?'?-?\d",
        r"\"loss\": ?-?\d",
        r"\bloss[=: ] ?-?\d",
        r"\bglobal_step[=:/ ]+\d",
        r"(?<!job )\bstep[s]?[=:/ ] ?\d+",
        r"tokens/s(?:ec)?",
        r"100%\|.{0,200} (?:examples|samples)/s",
        r"\biteration +\d+/",
        r"elapsed time per iteration",
        r"\d ?(?:it/s|s/it)\b",
    ),
    DONE: (
        r"train_runtime",
        r"[Tt]raining (?:is )?(?:completed?|finished|done)\b",
        r"exits successfully",
        r"finished successfully",
        r"\bsucceeded\b",
        r"(?i:exit ?code:? ?=?:? ?0)\b",
        r"state ?[:=] ?COMPLETED",
        r"Model weights saved in",
        r"End of training",
    ),
    CONNECTED: (
        r"Init COMPLETE",
        r"rendezvous complete",
        r"[Cc]onnected (?:to|all)\b",
        r"Rendezvous'ed worker group",
        r"Loading checkpoint shards: +100%",
        r"Resuming from checkpoint",
        r"\*{5} Running training \*{5}",
    ),
    FAILED_FIRST: (r"Root Cause \(first observed failure\)",),
    ENDED: (
        r"ChildFailedError",
        r"exits with return code = [1-9-]",
        r"returned non-zero exit status",
        r"Exited with exit code [1-9]",
        r"failed \(exitcode: ?-?\d+\)",
    ),
}


@dataclass(frozen=True)
class Target:
    """One wording that is looked for: of a rule, or of `kind`."""

    kind: str
    pattern: Pattern
    rule: Rule | None = None


class Index:
    """All wordings, ready to be looked for in blocks of bytes."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        of_rules = [
            Target(kind, pattern, rule)
            for rule in rules
            for kind, patterns in (
                (PATTERN, rule.patterns),
                (CONTEXT, rule.context),
                (CONTRADICTION, rule.contradicted_by),
            )
            for pattern in patterns
        ]
        own = [Target(kind, Pattern(text, literals(text))) for kind, texts in _OWN.items() for text in texts]
        self.targets = (*of_rules, *own)

    @cached_property
    def needles(self) -> Needles:
        """Made when a log is read: it takes numpy."""
        by_needle: dict[str, list[int]] = {}
        for number, target in enumerate(self.targets):
            for needle in target.pattern.needles:
                by_needle.setdefault(needle, []).append(number)
        return Needles(by_needle, self.of_progress)

    @cached_property
    def of_progress(self) -> frozenset[int]:
        """Those that ordinary lines have, of which the last ones of a block suffice."""
        return frozenset(number for number, target in enumerate(self.targets) if target.kind == PROGRESS)


def raised(text: str) -> re.Match[str] | None:
    """What is raised, where a line is an exception's."""
    return ORPHAN.match(text)
