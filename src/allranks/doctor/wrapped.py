"""A message that a terminal, a handler of logs or the library wrapped, so that no rule knows a line of it."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from allranks.doctor.reading import index as looked_for
from allranks.doctor.reading.index import Index
from allranks.doctor.reading.lines import Line
from allranks.doctor.reading.scanner import Read
from allranks.doctor.reading.tails import tail_of
from allranks.doctor.ruleset import Rule

_SHORTEST = 15  # characters of a line, without what was put before it, that may have been wrapped
_MOST_TEXT = 1000  # characters of both lines
_MOST_PAIRS = 5000
# What stands before the rest of a message: the space of a handler that aligns it, or the frame of a box.
_MARGIN = re.compile(r"[\s\u2502|>]*")
_BOX_END = re.compile(r"[\s\u2502]+$")
# It begins something new: a frame, a list, another record.
_NEW = re.compile(r'\s*(?:File "|frame #|Traceback |[-*] |\[[A-Z]+\]|\w+(?:Error|Exception|Warning)\b)')


@dataclass(frozen=True)
class Known:
    """What a rule says of two lines that are read as one."""

    rule: Rule
    fields: dict[str, str] = field(default_factory=dict)


def across(pairs: Sequence[tuple[str, str]], index: Index) -> dict[int, Known]:
    """Of pairs of a line and the next, by their number, the first rule whose wording begins in the one and ends in the
    other."""
    joined: list[tuple[int, int, str]] = []  # (of which pair, where its second line begins, both)
    for number, (first, then) in enumerate(pairs[:_MOST_PAIRS]):
        if len(first) < _SHORTEST or not then.strip() or _NEW.match(then):
            continue
        start, rest = _BOX_END.sub("", first), _BOX_END.sub("", _MARGIN.sub("", then, count=1))
        for text in (f"{start} {rest}", f"{start}{rest}"):  # cut at a space, or in the midst of a word
            joined.append((number, len(start), text[:_MOST_TEXT]))
    texts = [text.lower().encode("ascii", "replace") for _, _, text in joined]
    begins = [0, *itertools.accumulate(len(text) + 1 for text in texts)]
    known: dict[int, Known] = {}
    for place, string in index.needles.found(b"\n".join(texts) + b"\n", 0, begins[-1]) if texts else []:
        number, border, text = joined[bisect.bisect_right(begins, place) - 1]
        if number in known:
            continue
        for one in index.needles[string][1]:
            target = index.targets[one]
            rule, found = target.rule, target.pattern.regex.search(text)
            if rule is None or found is None or target.kind != looked_for.PATTERN:
                continue
            spans = found.start() < border < found.end() and not target.pattern.regex.search(text[:border])
            if spans and _stands(rule, text):
                known[number] = Known(rule, {key: value for key, value in found.groupdict().items() if value})
                break
    return known


def _stands(rule: Rule, text: str) -> bool:
    if any(other.search(text) for other in rule.unless):
        return False
    return not rule.context or any(one.regex.search(text) for one in rule.context)


def pairs(read: Read) -> Iterator[tuple[Line, Line]]:
    """Lines of the end of a log, each with the next one, where that may go on with it."""
    before: Line | None = None
    for line in tail_of(read):
        follows = before is not None and line.number == before.number + 1 and line.rank == before.rank
        if before is not None and follows and before.text.strip() and line.seconds is None and not line.level:
            yield before, line
        before = line
