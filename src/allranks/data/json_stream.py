"""Read JSON values out of a long text, each parsed when its own text has been read: the whole is never in memory."""

import re
from collections.abc import Iterator
from functools import partial
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import IO, Any

from allranks.data.json_values import DECODER, TRAILING_COMMA, placed, problem_of
from allranks.data.packed_files import open_text, reading, undecoded
from allranks.data.records import Record, UnreadableError

_WHITESPACE = re.compile(r"[ \t\r\n]*")
_CHARACTERS = 2**20  # that are read at once: many records, and little memory
_LONGEST_WORD = 12  # "\\ud83d\\ude00"; what is cut within the last of these may be whole in the file
_IN_NUMBERS = "0123456789.eE+-"
_BROKEN_CHARACTERS = 2**26  # in which the end of a broken element is looked for
_BRACKET_OR_TEXT = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}"]', re.DOTALL)


def read_list(path: Path) -> Iterator[Record]:
    """The elements of the JSON list that the file is. One that is broken is skipped by its brackets.

    Errors: `UnreadableError` with line and column where the list is broken between elements, or ends too early.
    """
    with reading(partial(str, path)), open_text(path) as file:
        text = _Text(path, file)
        text.next()
        text.skip(1)  # the bracket
        index = 0
        while text.next() != "]":
            yield text.element(f" (record {index}, counted from 0)")
            index += 1
            if text.next() == ",":
                comma = text.place()
                text.skip(1)
                if text.next() == "]":
                    raise text.error(f"{TRAILING_COMMA} array", comma)
            elif text.next() != "]":
                raise text.error("Expecting ',' delimiter")
        text.skip(1)
        if text.next():
            raise text.error("Extra data")
        if not index:
            raise UnreadableError(str(path), "the list is empty")


def read_objects(path: Path) -> Iterator[Record]:
    """The objects that follow one another in a file, each over as many lines as it takes."""
    with reading(partial(str, path)), open_text(path) as file:
        text = _Text(path, file)
        while text.next():
            yield text.element("")


def begins_with_long_value(path: Path) -> bool:
    """Whether a value over several lines begins the file, and not a line that is broken."""
    try:
        with reading(partial(str, path)), open_text(path) as file:
            return _Text(path, file).begins_with_long_value()
    except (UnreadableError, ValueError, RecursionError):
        return False


class _Text:
    """The part of a file's text that is held, and where it lies: `_held[_at]` is on `_line`."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._held, self._at, self._line, self._column = "", 0, 1, 1
        self._path, self._file = path, file

    def next(self) -> str:
        """The next character that is no whitespace, not taken yet; "" at the end of the file."""
        while True:
            found = _WHITESPACE.match(self._held, self._at)
            self.skip(found.end() - self._at if found else 0)
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._read_more():
                return ""

    def skip(self, count: int) -> None:
        stop = self._at + count
        lines = self._held.count("\n", self._at, stop)
        self._line += lines
        self._column = stop - self._held.rindex("\n", self._at, stop) if lines else self._column + count
        self._at = stop

    def element(self, number: str) -> Record:
        """Take the value that begins here; a broken one up to the end of its brackets."""
        where = partial("{}:{}{}".format, self._path, self._line, number)
        try:
            value, end = self._decode(DECODER)
        except (ValueError, RecursionError) as error:
            return self._broken(error, where)
        problem = undecoded(self._held[self._at : end])
        self.skip(end - self._at)
        return Record(None if problem else value, where, problem=problem)

    def begins_with_long_value(self) -> bool:
        """Whether a value of several lines is next. Raises what decoding raises."""
        if not self.next():
            return False
        _, end = self._decode(JSONDecoder())  # which may read more
        return "\n" in self._held[self._at : end]

    def place(self) -> str:
        return f"{self._path}:{self._line}:{self._column}"

    def error(self, what: str, place: str | None = None) -> UnreadableError:
        """What is wrong at a place: here, where none is given."""
        return UnreadableError(
            place or self.place(),
            f"not valid JSON: {what}. A file is read as one list of objects in brackets, or as objects one after the "
            "other without brackets and commas; nothing behind this place can be read",
        )

    def _decode(self, decoder: JSONDecoder) -> tuple[Any, int]:
        """The value that begins here, and where it ends."""
        while True:
            try:
                value, end = decoder.raw_decode(self._held, self._at)
            except JSONDecodeError as error:
                if _may_go_on(error, self._held) and self._read_more():
                    continue
                raise
            rest = self._held[end : end + _LONGEST_WORD]
            # Of a number at the end there may be more.
            is_cut = isinstance(value, (int, float)) and len(rest) < _LONGEST_WORD and not rest.strip(_IN_NUMBERS)
            if not (is_cut and self._read_more()):
                return value, end

    def _broken(self, error: ValueError | RecursionError, where: Any) -> Record:
        """The record of a broken element. Errors: `UnreadableError` if its brackets do not tell where it ends."""
        if isinstance(error, JSONDecodeError):
            error = placed(error)
        ahead = error.pos - self._at if isinstance(error, JSONDecodeError) else 0
        message = error.msg if isinstance(error, JSONDecodeError) else problem_of(error, self._held[self._at :][:200])
        while (end := _end_of_brackets(self._held, self._at)) is None:
            if len(self._held) - self._at > _BROKEN_CHARACTERS or not self._read_more():
                break
        if not end:
            self.skip(ahead)
            raise self.error(message)
        text = self._held[self._at : end]
        if undecoded(text) or not isinstance(error, JSONDecodeError):
            problem = problem_of(error, text)
        else:
            lines = text.count("\n", 0, ahead)
            column = ahead - text.rindex("\n", 0, ahead) if lines else self._column + ahead
            problem = f"not valid JSON ({self._path.name}:{self._line + lines}:{column}: {message})"
        self.skip(end - self._at)
        return Record(None, where, problem=problem)

    def _read_more(self) -> bool:
        """Hold twice as much, so that a long element is not parsed too often; False at the end of the file."""
        with reading(lambda: f"{self._path}:{self._line + self._held.count(chr(10), self._at)}"):
            more = self._file.read(max(_CHARACTERS, len(self._held) - self._at))
        if more:
            self._held, self._at = self._held[self._at :] + more, 0
        return bool(more)


def _may_go_on(error: JSONDecodeError, held: str) -> bool:
    """Whether the text may only have ended too early: in a text, an escape or a word such as -Infinity."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(held) - _LONGEST_WORD


def _end_of_brackets(text: str, at: int) -> int | None:
    """Where the object or list that begins at `at` ends; None: not in this text; 0: its brackets do not match."""
    if text[at : at + 1] not in ("[", "{"):
        return 0
    opened: list[str] = []
    for found in _BRACKET_OR_TEXT.finditer(text, at):
        sign = found[0]
        if sign in "[{":
            opened.append(sign)
        elif sign in "]}":
            if opened.pop() != ("[" if sign == "]" else "{"):
                return 0
            if not opened:
                return found.end()
        elif sign == '"':  # a text that has not ended
            return None
    return None
