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
        r"WorkerState\.SUCCEEDED",
        r"Exit[_ ]Status ?[:=] +0\b",
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

# Of DONE, what is said of a training or of its whole job, and of nothing else.
TRAINED = re.compile(
    r"train_runtime|[Tt]raining (?:is )?(?:completed?|finished|done)\b|exits successfully|state ?[:=] ?COMPLETED"
    r"|Model weights saved in|End of training|WorkerState\.SUCCEEDED|Exit[_ ]Status ?[:=] +0\b"
)

# How far a run has come: ordinary lines, of which the last ones of a piece suffice. They are looked for from its end.
PROGRESS_NEEDLES = (b"loss", b"step", b"it/s", b"s/it", b"tokens/s", b"samples/s", b"examples/s", b"iteration")
PROGRESS_LINE = re.compile(
    r"""['"]loss['"]: ?'?-?\d|\bloss[=: ] ?-?\d|\bglobal_step[=:/ ]+\d|(?<!job )\bsteps?[=:/ ] ?\d"""
    r"""|\d ?(?:it/s|s/it)\b|tokens/s|100%\|.{0,200} (?:examples|samples)/s|\biteration +\d+/|time per iteration"""
)


@dataclass(frozen=True)
class Target:
    """One wording that is looked for: of a rule, or of `kind`."""

    kind: str
    pattern: Pattern
    rule: Rule | None = None

    def may_match(self, held: bytes, begin: int, stop: int) -> bool:
        """Whether the raw line may be one: tried before its prefixes are told apart, which takes longer.

        No answer for long lines, and for patterns that begin where the prefixes end.
        """
        if self.is_anchored or stop - begin > _SHORT:
            return True
        return self.pattern.regex.search(held[begin:stop].decode("utf-8", "replace")) is not None

    @cached_property
    def is_anchored(self) -> bool:
        """Whether its pattern asks for the line's own beginning or end, or for what control characters become."""
        return "^" in self.pattern.text or "$" in self.pattern.text or self.kind == TRACEBACK


_SHORT = 2000  # bytes


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
        return Needles(by_needle)


def raised(text: str) -> re.Match[str] | None:
    """What is raised, where a line is an exception's."""
    return ORPHAN.match(text)
