"""One log, read in pieces of any size: what it says that matters, in bounded memory and in its own order."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace

from allranks.doctor.reading import index as looked_for
from allranks.doctor.reading.index import Index, Target
from allranks.doctor.reading.lines import ANSI, Line, decoded
from allranks.doctor.reading.prefixes import without_prefixes
from allranks.doctor.reading.shapes import SOURCE
from allranks.doctor.reading.sources import Source
from allranks.doctor.reading.tracebacks import Traceback, traceback_of
from allranks.doctor.ruleset import Rule

PIECE_BYTES = 1 << 22
_AHEAD_BYTES = 1 << 18  # kept back: a traceback's lines lie behind its first
_TAIL_BYTES = 1 << 16  # of the end that is kept: what no rule words may be looked for there
_BACK_BYTES = 1 << 12  # of a line before what was found in it; most lines end within
_MOST_TEXT = 2000  # characters of a line that patterns are tried on: what they may cost grows faster than it
_KEPT = 4  # lines of one wording and writer: the first, and in the last place the newest
_MOST_KEPT = 20_000  # lines in all
_MOST_TRIED = 2_000  # of one wording in one log: then it is an ordinary line there, of which the last one counts
_TRACEBACK = -1  # where wordings have numbers
_PROGRESS = 32  # lines that are looked at of each wording in a piece
_PROGRESS_BYTES = 1 << 18  # of a piece, in which those are looked for first
_TRACEBACK_LINES = 600  # of one writer
_LONGEST_LINE = 1 << 16  # bytes of one within a traceback; what goes on longer is none of its lines
_TIMES_BACK = 30  # lines: of a traceback only the line before it has a time
_RAW_LINES = 6_000  # of all writers, in which those are looked for
_LINE_END = re.compile(rb"\r?\n|\r")
_SEPARATORS = re.compile(rb"[\r\n]")
_WORKER = re.compile(r"(?P<key>time|host|rank|exitcode|error_file)\s*: (?P<value>.{0,200})")
_NAME = re.compile(r"[\w.:-]+")


@dataclass(frozen=True)
class Hit:
    """A line that words `rule`; `fields` are the pattern's named groups."""

    rule: Rule
    line: Line
    order: int
    fields: dict[str, str]


@dataclass(frozen=True)
class Mark:
    """A line that tells how far the run came, of `kind` (see index.py)."""

    kind: str
    line: Line
    order: int


@dataclass
class Read:
    """What one log told. `order` of anything in it is the number of its line."""

    source: Source
    hits: list[Hit] = field(default_factory=list)
    contexts: dict[tuple[str, str], list[Line]] = field(default_factory=dict)
    """By (rule's id, context or contradiction)."""
    tracebacks: list[tuple[int, Traceback]] = field(default_factory=list)
    exceptions: list[tuple[int, Line, str]] = field(default_factory=list)
    """Lines that are an exception's; the type."""
    marks: deque[Mark] = field(default_factory=lambda: deque(maxlen=16 * _PROGRESS))
    first_failed: dict[str, str] = field(default_factory=dict)
    """What torchrun's report says of the worker that failed first: rank, host, exitcode, time."""
    first_failed_at: Line | None = None
    num_lines: int = 0
    num_bytes: int = 0
    writers: set[str] = field(default_factory=set)
    broken: str = ""
    tail: bytes = b""
    """The end of it, whole lines; of which the first has the number `tail_from`."""
    tail_from: int = 1
    rules: tuple[Rule, ...] = ()
    """All that it was read by."""
    index: Index | None = None


class _Numbers:
    """The number of the line that begins at a place; asked for places nearly in order, so that little is counted."""

    def __init__(self, held: bytes, before: int) -> None:
        self._held, self._place, self._newlines = held, 0, before

    def __call__(self, place: int) -> int:
        if place >= self._place:
            self._newlines += self._held.count(b"\n", self._place, place)
        else:
            self._newlines -= self._held.count(b"\n", place, self._place)
        self._place = place
        return self._newlines + 1


class Scanner:
    """`feed` takes the log's bytes as they come; `read` is what it has told so far."""

    def __init__(self, index: Index, source: Source) -> None:
        self._index = index
        self.read = Read(source, rules=index.rules, index=index)
        self._held = b""
        self._done = 0  # of what is held: it has been looked at
        self._lines = 0  # newlines before what is held
        self._kept: dict[tuple[int, str], int] = {}
        self._last_at: dict[tuple[int, str], int] = {}
        self._tried: dict[int, int] = {}
        self._capped: frozenset[int] = frozenset()  # wordings that are ordinary here
        self._ordinary: frozenset[int] = frozenset()  # strings of none but those
        self._code: set[int] = set()
        self._headers: set[int] = set()
        self._known: dict[tuple[int, int], Line] = {}
        """By where a line begins and ends in what is held: several wordings are looked for in each."""
        self._before: dict[int, tuple[int, float | None, bool]] = {}
        """By where a line begins in what is held: where the one before it does, and when that was written
        (and whether in UTC)."""

    def feed(self, data: bytes, *, at_end: bool = False) -> None:
        """Look through `data`, which follows what came before. `at_end`: there is no more."""
        self.read.num_bytes += len(data)
        held = self._held + data
        if held.find(b"\x1b", self._done) >= 0:  # perhaps the rest of one that was cut
            held = held[: self._done] + ANSI.sub(b"", held[self._done :])
        until = len(held) if at_end else max(self._done, len(held) - _AHEAD_BYTES)
        if not at_end and until - self._done < _AHEAD_BYTES:  # wait for more than what is kept back anyway
            self._held = held
            return
        self._scan(held, self._done, until)
        keep_from = max(0, until - _BACK_BYTES)
        newline = held.rfind(b"\n", keep_from, until)
        keep_from = newline + 1 if newline >= 0 else keep_from
        if at_end:
            start = held.find(b"\n", len(held) - _TAIL_BYTES) + 1 if len(held) > _TAIL_BYTES else 0
            self.read.tail, self.read.tail_from = held[start:], self._lines + held.count(b"\n", 0, start) + 1
        self._lines += held.count(b"\n", 0, keep_from)
        self._held, self._done = held[keep_from:], until - keep_from
        self.read.num_lines = self._lines + self._held.count(b"\n") + (at_end and self._held[-1:] not in (b"", b"\n"))

    def so_far(self) -> Read:
        """What it has told if no more comes; more may."""
        twin = copy(self)
        read = self.read
        twin.read = replace(
            read,
            hits=list(read.hits),
            contexts={key: list(lines) for key, lines in read.contexts.items()},
            tracebacks=list(read.tracebacks),
            exceptions=list(read.exceptions),
            marks=deque(read.marks, read.marks.maxlen),
            writers=set(read.writers),
        )
        twin._kept, twin._last_at, twin._tried = dict(self._kept), dict(self._last_at), dict(self._tried)
        twin._code, twin._headers = set(self._code), set(self._headers)
        twin.feed(b"", at_end=True)
        return twin.read

    def _scan(self, held: bytes, since: int, until: int) -> None:
        folded = held[: until + self._index.needles.longest].lower()
        number_of = _Numbers(held, self._lines)
        self._known, self._before = {}, {}
        seen: set[tuple[int, int]] = set()
        late: dict[int, int] = {}  # of wordings that are ordinary here, where the last of this piece stands
        needles = self._index.needles
        for start, string in needles.found(folded, since, until, self._ordinary):
            needle, numbers = needles[string]
            numbers_here = numbers if not self._capped else [one for one in numbers if one not in self._capped]
            if len(numbers_here) < len(numbers):
                late |= {one: start for one in numbers if one in self._capped}
                if not numbers_here:
                    continue
            begin, stop = _segment(held, start, start + len(needle))
            for number in numbers_here:
                if (begin, number) in seen:
                    continue
                seen.add((begin, number))
                target = self._index.targets[number]
                if not target.may_match(held, begin, stop):
                    continue
                self._count(number)
                line = self._line(held, begin, stop, start, number_of(begin))
                if target.kind == looked_for.TRACEBACK:
                    if line.number not in self._headers:
                        self._traceback(held, begin, line.number)
                    continue
                self._take(number, target, line, held, begin, stop)
        for number, start in sorted(late.items(), key=lambda one: one[1]):
            target = self._index.targets[number]
            begin, stop = _segment(held, start, start + 1)
            if target.kind != looked_for.TRACEBACK:
                self._take(number, target, self._line(held, begin, stop, start, number_of(begin)), held, begin, stop)
        self._progress(held, folded, since, until, number_of)

    def _count(self, number: int) -> None:
        """A wording that has been there so often is an ordinary one here."""
        times = self._tried[number] = self._tried.get(number, 0) + 1
        if times >= _MOST_TRIED:
            self._capped |= {number}
            self._ordinary = self._index.needles.of_none_but(self._capped)

    def _progress(self, held: bytes, folded: bytes, since: int, until: int, number_of: _Numbers) -> None:
        """The last lines that tell how far the run has come: of most logs the end of a piece has enough of them."""
        begins = _told_of_progress(held, folded, max(since, until - _PROGRESS_BYTES), until)
        if len(begins) < _PROGRESS:
            begins = _told_of_progress(held, folded, since, until)
        for begin, (start, stop) in sorted(begins.items())[-2 * _PROGRESS :]:
            line = self._line(held, begin, stop, start, number_of(begin))
            if looked_for.PROGRESS_LINE.search(line.text) and not _NOT_FINITE.search(line.text):
                self.read.marks.append(Mark(looked_for.PROGRESS, line, line.number))

    def _line(self, held: bytes, begin: int, stop: int, around: int, number: int) -> Line:
        """The line from `begin` to `stop`; of a long one its beginning and what is `around`."""
        if (known := self._known.get((begin, stop))) is not None:
            return known
        line = self._line_anew(held, begin, stop, around, number)
        if stop - begin <= _MOST_TEXT and len(self._known) < _MOST_KEPT:
            self._known[begin, stop] = line
        return line

    def _line_anew(self, held: bytes, begin: int, stop: int, around: int, number: int) -> Line:
        raw = held[begin:stop]
        if len(raw) > _MOST_TEXT:
            middle = max(0, around - begin - _MOST_TEXT // 2)
            raw = raw[:200] + raw[max(200, middle) : max(200, middle) + _MOST_TEXT]
        told = without_prefixes(decoded(raw))
        rank, node = told.rank, told.node
        if rank is None and begin and held[begin - 1 : begin] == b"\r":  # behind a progress bar: the line's own prefix
            line_start = held.rfind(b"\n", max(0, begin - _BACK_BYTES), begin) + 1
            first = without_prefixes(decoded(held[line_start : line_start + 200]))
            rank, node = first.rank, node or first.node
        source = self.read.source
        local = told.local_rank if told.local_rank is not None else source.local_rank
        rank = rank if rank is not None else source.rank
        node = node or source.node
        stream = told.stream or (f"local rank {local}" if local is not None else "")
        if len(self.read.writers) < 100_000:
            self.read.writers.add(f"{node}/{rank}/{stream}")
        return Line(source.name, number, told.text, rank, node, told.seconds, stream, told.level, told.is_utc)

    def _time_before(self, held: bytes, begin: int) -> tuple[float | None, bool]:
        """When the nearest of the lines before was written, as far as one of them tells."""
        for _ in range(_TIMES_BACK):
            if begin <= 0:
                return None, False
            if (before := self._before.get(begin)) is None:
                start = held.rfind(b"\n", max(0, begin - 1 - _BACK_BYTES), begin - 1) + 1
                told = without_prefixes(decoded(held[start : min(begin - 1, start + 300)]))
                before = self._before[begin] = start, told.seconds, told.is_utc
            start, seconds, is_utc = before
            if seconds is not None:
                return seconds, is_utc
            if start >= begin - 1:
                return None, False
            begin = start
        return None, False

    def _take(self, number: int, target: Target, line: Line, held: bytes, begin: int, stop: int) -> None:
        text, rule, read = line.text, target.rule, self.read
        found = target.pattern.regex.search(text)
        if found is None or SOURCE.match(text):
            return
        if line.seconds is None:
            seconds, is_utc = self._time_before(held, begin)
            line = replace(line, seconds=seconds, is_utc=is_utc)
        if rule is None:
            if target.kind == looked_for.EXCEPTION:
                raised = looked_for.raised(text) if line.number not in self._code else None
                if raised and self._may_keep(number, line, len(read.exceptions)):
                    read.exceptions.append((line.number, line, raised["type"]))
            elif target.kind == looked_for.FAILED_FIRST:
                self._first_failed(held, stop, line)
            else:
                read.marks.append(Mark(target.kind, line, line.number))
            return
        if target.kind != looked_for.PATTERN:
            lines = read.contexts.setdefault((rule.id, target.kind), [])
            if len(lines) < 400:
                lines.append(line)
            else:
                lines[-1] = line
            return
        if line.number in self._code or any(other.search(text) for other in rule.unless):
            return
        fields = {key: value for key, value in found.groupdict().items() if value}
        hit = Hit(rule, line, line.number, fields)
        if self._may_keep(number, line, len(read.hits)):
            self._last_at[number, _writer(line)] = len(read.hits)
            read.hits.append(hit)
        elif (last := self._last_at.get((number, _writer(line)))) is not None:
            read.hits[last] = hit  # the newest

    def _may_keep(self, number: int, line: Line, total: int) -> bool:
        key = (number, _writer(line))
        kept = self._kept.get(key, 0)
        if kept >= _KEPT or total >= _MOST_KEPT:
            return False
        self._kept[key] = kept + 1
        return True

    def _traceback(self, held: bytes, begin: int, number: int) -> None:
        lines = self._lines_from(held, begin, number)
        first = next(lines)
        newline = held.rfind(b"\n", max(0, begin - 400), max(0, begin - 1))
        found = traceback_of(_of_one_writer(first, lines), decoded(held[newline + 1 : max(0, begin - 1)]))
        if found is None:
            return
        for known, more in ((self._code, found.code), (self._headers, found.headers)):
            if len(known) > _MOST_KEPT:  # they are of lines that have passed
                known.clear()
            known |= more
        if self._may_keep(_TRACEBACK, first, len(self.read.tracebacks)):
            self.read.tracebacks.append((number, found))

    def _lines_from(self, held: bytes, begin: int, number: int) -> Iterator[Line]:
        for _ in range(_RAW_LINES):
            if begin >= len(held):
                return
            end = _LINE_END.search(held, begin, begin + _LONGEST_LINE)
            stop, after = end.span() if end else (min(len(held), begin + _LONGEST_LINE),) * 2
            yield self._line(held, begin, stop, begin, number)
            begin, number = max(after, stop + (end is None)), number + (end is None or end[0] != b"\r")

    def _first_failed(self, held: bytes, stop: int, line: Line) -> None:
        told: dict[str, str] = {}
        lines = self._lines_from(held, held.find(b"\n", stop) + 1 or len(held), line.number + 1)
        for number, found in enumerate(one for one in lines if one.text.strip()):
            if number > 12:
                break
            if match := _WORKER.search(found.text):
                name = _NAME.match(match["value"]) if match["key"] == "host" else None  # quotes and colours may follow
                told.setdefault(match["key"], name[0] if name else match["value"].strip())
        self.read.first_failed, self.read.first_failed_at = told, line


def _told_of_progress(held: bytes, folded: bytes, since: int, until: int) -> dict[int, tuple[int, int]]:
    """By where a line begins that may tell of progress: where what says so stands, and where the line ends."""
    begins: dict[int, tuple[int, int]] = {}
    for needle in looked_for.PROGRESS_NEEDLES:
        end = until
        for _ in range(_PROGRESS):
            start = folded.rfind(needle, since, end)
            if start < 0:
                break
            begin, stop = _segment(held, start, start + len(needle))
            begins.setdefault(begin, (start, stop))
            end = min(start, begin + len(needle) - 1)
    return begins


_NOT_FINITE = re.compile(r"(?i)\b(?:nan|inf|infinity)\b")


def _of_one_writer(first: Line, lines: Iterator[Line]) -> Iterator[Line]:
    yield first
    count = 0
    for line in lines:
        if _writer(line) == _writer(first):
            yield line
            count += 1
            if count > _TRACEBACK_LINES:
                return


def _writer(line: Line) -> str:
    return f"{line.node}/{line.rank}/{line.stream}"


def _segment(held: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the line, or the part of it between carriage returns, begins and ends; cut where it is endless."""
    low = max(0, start - _BACK_BYTES)
    begin = max(held.rfind(b"\n", low, start), held.rfind(b"\r", low, start)) + 1 or low
    found = _SEPARATORS.search(held, end, end + _BACK_BYTES)
    return begin, found.start() if found else min(len(held), end + _BACK_BYTES)
