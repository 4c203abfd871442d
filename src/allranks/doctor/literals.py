"""What a line must contain, whatever a pattern matches in it: so that gigabytes are passed over without trying any.

The same idea as RE2's prefilter: a pattern is read as a tree, and each part of it tells the strings one of which every
match contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parse  # type: ignore[attr-defined]
from typing import Any

SHORTEST = 5  # characters: shorter ones are in every second line of a log
_MOST = 64  # strings of one pattern: more say that it is no wording
_WIDE = 2  # unbounded repeats of what is nearly any character: with a third, a long line takes its length cubed


@dataclass(frozen=True)
class _Part:
    """Of a piece of a pattern: all strings that it matches, if they are few; and strings one of which it contains."""

    exact: frozenset[str] | None
    needed: frozenset[str] = frozenset()


def literals(pattern: str) -> frozenset[str]:
    """Lower-case strings one of which is in every line that `pattern` matches; empty where there is none to name."""
    part = _of_sequence(sre_parse.parse(pattern))
    found = part.exact if part.exact is not None else part.needed
    return frozenset() if _worth(found) < 1 else frozenset(found)


def too_slow(pattern: str) -> str:
    """Why a hostile line might keep the pattern busy for more than its own length, squared; "" if none can."""
    wide, nested = _repeats(sre_parse.parse(pattern), inside=False)
    if nested:
        return "a repeat within a repeat"
    if wide > _WIDE:
        return f"{wide} unbounded repeats of nearly any character: at most {_WIDE}, or bound them, as in .{{0,80}}"
    return ""


def _of_sequence(items: Iterable[Any]) -> _Part:
    run: frozenset[str] = frozenset([""])
    whole, needed = True, []
    for part in _parts(items):
        if part.exact is not None and len(run) * len(part.exact) <= _MOST:
            run = frozenset(a + b for a in run for b in part.exact)
            continue
        whole = False
        needed.append(run)
        run = frozenset([""])
        if part.exact is not None:
            run = part.exact
        elif part.needed:
            needed.append(part.needed)
    if whole:
        return _Part(run)
    return _Part(None, max([*needed, run], key=_worth))


def _parts(items: Iterable[Any]) -> Iterator[_Part]:
    """Of each item, letters that follow each other taken as one: most of a wording are."""
    letters = ""
    for kind, value in items:
        # Bytes are searched, whose case is folded only where they are ASCII.
        if kind is sre.LITERAL and value < 128:
            letters += chr(value)
            continue
        if letters:
            yield _Part(frozenset([letters.lower()]))
            letters = ""
        yield _of_item(kind, value)
    if letters:
        yield _Part(frozenset([letters.lower()]))


def _of_item(kind: Any, value: Any) -> _Part:
    if kind is sre.IN and all(op is sre.LITERAL and one < 128 for op, one in value):
        return _Part(frozenset(chr(one).lower() for _, one in value))
    if kind is sre.SUBPATTERN:
        return _of_sequence(value[3])
    if kind is sre.ATOMIC_GROUP:
        return _of_sequence(value)
    if kind is sre.BRANCH:
        return _of_branches([_of_sequence(branch) for branch in value[1]])
    if kind in (sre.AT, sre.ASSERT, sre.ASSERT_NOT):
        return _Part(frozenset([""]))
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        least, most, of = value
        part = _of_sequence(of)
        if part.exact is not None and (least, most) == (0, 1):
            return _Part(part.exact | {""})
        if least == most == 1:
            return part
        return _Part(None, (part.exact or part.needed) if least else frozenset())
    return _Part(None)


def _of_branches(parts: Sequence[_Part]) -> _Part:
    if all(part.exact is not None for part in parts):
        exact = frozenset[str]().union(*(part.exact or () for part in parts))
        if len(exact) <= _MOST:
            return _Part(exact)
    each = [part.exact if part.exact is not None else part.needed for part in parts]
    return _Part(None, frozenset().union(*each) if all(each) else frozenset())


def _worth(strings: frozenset[str]) -> float:
    """How much it tells that a line contains one of them: their least length, within bounds."""
    if not strings:
        return 0.0
    return min(len(one) for one in strings) - len(strings) / (2 * _MOST)


def _repeats(items: Iterable[Any], *, inside: bool) -> tuple[int, bool]:
    """(unbounded repeats of wide sets, whether an unbounded repeat contains another repeat)."""
    wide, nested = 0, False
    for kind, value in items:
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            _, most, of = value
            unbounded = most is sre.MAXREPEAT or most > 200
            nested |= inside and most != 1
            wide += unbounded and _is_wide(of)
            below = [of]
            deeper = inside or unbounded
        elif kind is sre.SUBPATTERN:
            below, deeper = [value[3]], inside
        elif kind is sre.ATOMIC_GROUP:
            below, deeper = [value], inside
        elif kind is sre.BRANCH:
            below, deeper = value[1], inside
        elif kind in (sre.ASSERT, sre.ASSERT_NOT):
            below, deeper = [value[1]], inside
        else:
            continue
        found = [_repeats(one, inside=deeper) for one in below]
        # Of branches only one is tried at a time.
        wide += max(count for count, _ in found) if found else 0
        nested |= any(is_nested for _, is_nested in found)
    return wide, nested


def _is_wide(of: Any) -> bool:
    """Whether what is repeated matches most characters: any, all but some, all that is no space."""
    if len(of) != 1:
        return False
    kind, value = of[0]
    if kind in (sre.ANY, sre.NOT_LITERAL):
        return True
    return kind is sre.IN and (
        value[0][0] is sre.NEGATE or any(one == (sre.CATEGORY, c) for one in value for c in _WIDE_SETS)
    )


_WIDE_SETS = (sre.CATEGORY_NOT_SPACE, sre.CATEGORY_NOT_DIGIT, sre.CATEGORY_NOT_WORD)


def problem_of(pattern: str) -> str:
    """What keeps `pattern` from being one of a rule; "" where it can be."""
    try:
        re.compile(pattern)
    except re.error as why:
        return f"is no regular expression: {why}"
    if why_slow := too_slow(pattern):
        return f"takes too long for a hostile line: {why_slow}"
    found = literals(pattern)
    shortest = min(found, key=len, default="")
    if len(shortest) < SHORTEST:
        return (
            f"has no literal of {SHORTEST} characters in every match (best: {shortest!r}): logs of gigabytes are "
            "searched for those first"
        )
    return ""
