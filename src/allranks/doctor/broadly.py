"""A failure that no rule knows, by what its words speak of: likely at most, and never before what a rule knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from allranks.doctor.candidates import BY_LINE, Candidate, has_failed, is_warning, marks_of, may_be_cause, was_survived
from allranks.doctor.reading.lines import Line
from allranks.doctor.reading.prefixes import without_prefixes
from allranks.doctor.reading.scanner import Hit, Read
from allranks.doctor.reading.shapes import SOURCE
from allranks.doctor.reading.tails import tail_of
from allranks.doctor.reading.tracebacks import Raised
from allranks.doctor.ruleset import CAUSE, RETRIED, SYMPTOM, Rule
from allranks.doctor.wrapped import across, pairs

NOT_PROVEN = "No rule knows these words; they speak of such a failure, and may mean another. "
_MOST_TEXT = 1000  # characters of a line
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")  # as web pages set them
_MOST_TRIED = 500  # lines that differ by more than numbers
_NUMBERS = re.compile(r"\d+")
# Of the ends of logs only lines that say that something failed are looked at: the rest speaks of all that works, too.
_FAILED = re.compile(
    r"""(?ix)(?<![\w.])(?:error|errors|err|fatal|fail(?:ed|s|ure|ures)?|abort\w*|exception|cannot|can't|can\ not
    |could\ not|couldn't|unable|not\ found|no\ such|not\ exist|doesn't\ exist|invalid|exceed\w*|killed|evicted|denied
    |refused|inconsistent|unsupported|not\ supported|incompatible|mismatch\w*|exclusive|crash\w*|corrupt\w*|nan|panic)\b
    |\w(?:Error|Exception)\b|NCCL\ WARN|what\(\):|\b(?:timed\ out|unreachable|exhausted|already\ in\ use|not\ ready
    |(?:is|was)\ (?:lost|down|dead)|not\ active|inactive|no\ usable)\b"""
)
# What NCCL, its plugins and UCX say is of GPUs, networks and collectives, whatever else its words may mean.
_OF_NETWORKS = re.compile(r"NCCL WARN|UCX +(?:ERROR|FATAL)")
_FAMILIES_OF_NETWORKS = frozenset({"nccl", "infiniband", "network-card", "rendezvous", "cuda", "memory", "code"})
# Of what is no failure, and of guesses at reasons (Ray's).
_PASSING = re.compile(
    r"\b(?:INFO|DEBUG)\b|(?i:retry|ignor|skipp|falling back|fall back|instead|deprecat|potential"
    r"|by (?:the )?oom killer|can happen because|possible reasons|\(e\.g\.)"
)
_FRAME = re.compile(r'\s*File "|\s*frame #|\s*@ +0x')
_WITHIN = re.compile(
    r"(?:^|[\s'\"`*]|\\n)(?P<type>(?:[A-Za-z_]\w{0,60}\.){0,8}(?:[A-Z]\w{0,60}(?:Error|Exception)|Exception)): "
    r"(?P<message>[^\s{].{3,})"
    r"|(?:^|\s)(?P<bare>(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z]\w{0,60}(?:Error|Exception))\s*$"
)
_SHOWN = re.compile(f"{_FRAME.pattern}|{SOURCE.pattern}")
_FAR_APART = re.compile(r" {8,}(?=\S)")
_RAISES = re.compile(r"\s*(?:raise (?P<type>[A-Z]\w+)\(|assert )")
_AFTER_FRAME = 3  # lines from a frame to the end of what it shows, and to the end of the log


def named(one: Candidate, rules: Sequence[Rule]) -> Candidate:
    """`one`, which may be an exception that no rule knows, as what it speaks of."""
    if one.rule is not None or one.raised is None:
        return one
    said = one.line.text.strip()[:_MOST_TEXT]
    more = f"{said} {one.raised.more}"[:_MOST_TEXT]
    rule = spoken_of(said, rules) or (spoken_of(more, rules) if one.raised.more else None)
    return replace(one, rule=rule, is_broad=True) if rule else one


def last_lines(reads: Sequence[Read]) -> list[Candidate]:
    """What the ends of the logs say that failed, where the run did not go on after it."""
    found = []
    tried: dict[str, Rule | None] = {}
    marks = [marks_of(read) for read in reads]
    for number, read in enumerate(reads):
        known = _known_lines(read)
        for line in tail_of(read):
            text = line.text[:_MOST_TEXT]
            is_failure = line.level in ("ERROR", "CRITICAL", "FATAL") or _FAILED.search(text)
            if line.number in known or not is_failure or _PASSING.search(text) or _SHOWN.match(text):
                continue
            if line.level in ("INFO", "DEBUG") or (is_warning(line) and not has_failed(read)):
                continue
            kind = _NUMBERS.sub("#", text)
            if kind not in tried and len(tried) < _MOST_TRIED:
                tried[kind] = spoken_of(text, read.rules)
            if (rule := tried.get(kind)) is None or rule.is_excepted(text):
                continue
            candidate = Candidate(rule, line, number, line.number, BY_LINE, is_broad=True)
            if not was_survived(candidate, reads, marks):
                found.append(candidate)
    return found


def wrapped_lines(reads: Sequence[Read]) -> list[Candidate]:
    """What rules know of the ends of the logs where two lines are read as one, and the run did not go on after it."""
    found = []
    marks = [marks_of(read) for read in reads]
    for number, read in enumerate(reads):
        if read.index is None:
            continue
        judged = {hit.order for hit in read.hits if hit.rule.kind != SYMPTOM}
        lines = [
            (line, then)
            for line, then in pairs(read)
            if line.number not in judged and then.number not in judged and line.level not in ("INFO", "DEBUG")
        ]
        known = across([(line.text, then.text) for line, then in lines], read.index)
        for place, told in sorted(known.items()):
            line = lines[place][0]
            candidate = Candidate(told.rule, line, number, line.number, BY_LINE, told.fields)
            if told.rule.kind in (CAUSE, RETRIED) and not was_survived(candidate, reads, marks):
                found.append(candidate)
    return found


def half_told(reads: Sequence[Read], consequences: Sequence[Hit]) -> list[Candidate]:
    """Exceptions that stand within other text (a message in YAML, quoted), and the last statement of a traceback that
    was cut off before it says what was raised: where the logs say nothing else, they end with that."""
    found = []
    marks = [marks_of(read) for read in reads]
    for number, read in enumerate(reads):
        known = {hit.order for hit in (*read.hits, *consequences)}
        frame, tail = 0, list(tail_of(read))
        for place, line in enumerate(tail):
            if _FRAME.match(line.text):
                frame = place
            if line.number in known or line.level in ("INFO", "DEBUG", "WARNING", "WARN"):
                continue
            cut_here = 0 < place - frame <= _AFTER_FRAME and place + _AFTER_FRAME >= len(tail)
            for text in _joined(line.text[:_MOST_TEXT]):
                if (raised := _half_raised(text, line, cut_here)) is None:
                    continue
                candidate = Candidate(None, line, number, line.number, BY_LINE, {}, raised)
                if not was_survived(candidate, reads, marks):
                    found.append(candidate)
    return found


def _joined(text: str) -> list[str]:
    """`text`, or the lines that a page has put into one, which are far apart in it."""
    return [without_prefixes(part).text for part in _FAR_APART.split(text)]


def _half_raised(text: str, line: Line, cut_here: bool) -> Raised | None:
    if _PASSING.search(text) or SOURCE.match(text):
        return None
    within, raises = _WITHIN.search(text), _RAISES.match(text)
    if within is not None and may_be_cause(kind := within["type"] or within["bare"], text):
        return Raised(kind, within["message"] or "", line, None)
    if cut_here and raises is not None and may_be_cause(raises["type"] or "", ""):
        return Raised("", "", line, None)
    return None


def spoken_of(text: str, rules: Sequence[Rule]) -> Rule | None:
    """Of the causes that `text` speaks of the one that says most of it."""
    text = text.translate(_QUOTES)
    families = _FAMILIES_OF_NETWORKS if _OF_NETWORKS.search(text) else None
    best, most = None, 0
    for rule in rules:
        if families is not None and rule.family not in families:
            continue
        if rule.kind in (CAUSE, RETRIED) and (length := rule.speaks_of(text)) > most:
            best, most = rule, length
    return best


def _known_lines(read: Read) -> set[int]:
    """Those that rules have judged already, and the text of programs in tracebacks."""
    return {hit.order for hit in read.hits if hit.rule.kind != SYMPTOM}.union(
        *(traceback.code for _, traceback in read.tracebacks)
    )
