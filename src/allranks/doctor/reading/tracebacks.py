"""A Python traceback as one thing: what was raised, where in the user's own code, and what it began with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from allranks.doctor.reading.lines import Line
from allranks.doctor.reading.shapes import HEADER, Shape, prefix_of

# An exception that stands by itself: its traceback was cut off, or is another program's; also as torchrun's error file
# says it.
ORPHAN = re.compile(
    r"(?:\s{0,40}[\"']?message[\"']?: [\"'])?(?:[A-Za-z_]\w{0,60}\.){0,12}"
    r"(?P<type>[A-Z]\w{0,100}(?:Error|Exception|Interrupt|Timeout|Killed))"
    r"(?:: ?(?P<message>.*)|\s*$)"
)
# In torchrun's report of all that failed it stands under the worker's other fields, as far to the right as they do.
IN_REPORT = re.compile(r"\s+traceback : ")
# Where the log is cut off, or another's line stands in the way, before what was raised is said.
_RAISES = re.compile(r"\s+(?:raise (?P<type>(?:[A-Za-z_]\w{0,100}\.){0,12}[A-Z]\w{0,100})\(|assert[ (])")
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_IGNORED = re.compile(r"Exception ignored in")
# Not the user's own code.
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python\d|<frozen |^<string>$|/torch/|/allranks/")
_LONGEST_MESSAGE = 20  # lines
_MORE_LINES = 2  # of a message that are kept beside its first


@dataclass(frozen=True)
class Frame:
    file: str
    line: int
    function: str


@dataclass(frozen=True)
class Raised:
    """One exception of a chain. `said` is its last line, with the type; `frame` the last of the user's own, else the
    last of all."""

    type: str
    message: str
    said: Line
    frame: Frame | None
    more: str = ""
    """The next lines, as far as they may go on with the message."""


@dataclass(frozen=True)
class Traceback:
    """`chain` in the order in which they were raised: the first is the original cause, the last ended the program.

    `code` are the numbers of its lines that show files and source text, which are no message; `headers` of those
    that a traceback begins with.
    """

    chain: tuple[Raised, ...]
    first: Line
    code: frozenset[int]
    headers: frozenset[int]
    was_ignored: bool = False

    @property
    def original(self) -> Raised:
        return self.chain[0]


def traceback_of(lines: Iterable[Line], before: str = "") -> Traceback | None:
    """The traceback that `lines`, of one writer, begin with; `before` is the line before. None if it ends nowhere."""
    chain: list[Raised] = []
    code: set[int] = set()
    headers: set[int] = set()
    frames: list[Frame] = []
    first: Line | None = None
    inside = False
    shape = Shape()
    last = None
    message_lines = margin = 0
    before_header = ""
    for line in lines:
        text = line.text
        if margin and text[:margin].isspace():
            text = text[margin:]
        elif before_header:
            if _masked(text[: len(before_header)]) == before_header:
                text = text[len(before_header) :]
                line = replace(line, text=text)
            elif text.startswith((" ", 'File "')) and not code:
                before_header = ""  # it stood before the header alone
            else:
                continue  # of another writer
        if HEADER in text:
            if first is not None and not inside and not chain:
                break
            if chain and not inside and message_lines >= 0:
                break  # another traceback, not of this chain
            first = first or line
            headers.add(line.number)
            shape = Shape.of(text)
            inside, frames, message_lines = True, [], 0
            if IN_REPORT.match(text):
                margin = len(text) - len(text.lstrip())
            elif not before_header:
                before_header = _masked(prefix_of(text))
            continue
        if first is None:
            return None
        if inside:
            if shape.shows_code(text):
                if (found := shape.frame(text)) is not None:
                    frames.append(Frame(found["file"], int(found["line"]), (found["function"] or "").strip()))
                code.add(line.number)
                last = line
                continue
            found = shape.raised(text)
            if found is None:
                break
            chain.append(Raised(found["type"], (found["message"] or "").strip(), line, _own(frames)))
            inside = False
            continue
        if text.startswith(_CHAINED):
            message_lines = -1  # the next header belongs to it
            continue
        if message_lines < 0:
            if text.strip():
                break
            continue
        message_lines += 1
        if message_lines <= _MORE_LINES:
            chain[-1] = replace(chain[-1], more=f"{chain[-1].more} {text.strip()}".strip())
        if message_lines > _LONGEST_MESSAGE:
            break
    if inside and not chain and last is not None and (found := _RAISES.match(last.text)) is not None:
        chain.append(Raised(found["type"] or "AssertionError", "", last, _own(frames)))
    if first is None or not chain:
        return None
    return Traceback(tuple(chain), first, frozenset(code), frozenset(headers), bool(_IGNORED.search(before)))


_OF_TIMES = re.compile(r"\d+(?:[-:.,]\d+)+|\d{9,}")


def _masked(before: str) -> str:
    """What stands before a line, without its time: of lines of one writer it is the same."""
    return _OF_TIMES.sub(lambda found: re.sub(r"\d", "0", found[0]), before)


def _own(frames: list[Frame]) -> Frame | None:
    own = [frame for frame in frames if not _LIBRARY.search(frame.file)]
    return own[-1] if own else frames[-1] if frames else None
