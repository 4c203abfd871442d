"""Logs that something else wrote down as JSON: the lines of a program in them, as they were before.

Docker's and Kubernetes' files, `journalctl -o json`, and what CloudWatch, Google's and Loki's logs are exported as.
Each line stays one line, so that places are those of the file; what the program wrote in several lines is parted by
carriage returns.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import BinaryIO

_STRING = rb'"((?:[^"\\]|\\.)*+)"?'
# Of these keys the value is what the program wrote; of those behind them the traceback that belongs to it.
_WORDS = re.compile(
    rb'"(?:log|message|MESSAGE|msg|textPayload|line|exc_info|exception|stack_trace|py_callstack)" ?: ?' + _STRING
)
_TIME = re.compile(rb'"(?:time|timestamp|@timestamp|date|ts|__REALTIME_TIMESTAMP)" ?: ?"?([0-9][0-9TZ:.+-]{8,40})')
_NODE = re.compile(
    rb'"(?:pod_name|pod|_HOSTNAME|hostname|host|logStreamName)" ?: ?"([A-Za-z0-9][A-Za-z0-9._/-]{0,252})"'
)
_BEGINS = (b'{"', b'{ "')
_ISO = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
_SECONDS_DIGITS = 10  # of a time in seconds since 1970, until the year 2286; more are parts of a second
_LONGEST = 1 << 20  # bytes of a line that is waited for
_BEGIN = 1 << 12  # bytes of a log, by which a document of many lines is told


class FromJson:
    """The bytes of `file`, with JSON's lines as those that they hold; all others as they are."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._read1 = getattr(file, "read1", file.read)
        self._held = b""
        self._is_first = True
        self._is_inside = False  # a line that is passed on as it is
        self._is_document = False
        self._seen_at = b""

    def read(self, size: int) -> bytes:
        """Some bytes; none at the end, for now."""
        while piece := self._read1(size):
            if told := self._passed(piece):
                return told
        held, self._held = self._held, b""
        self._is_inside = self._is_inside or bool(held)
        return self._line(held)

    def fileno(self) -> int:
        """Of what is read, to be waited for."""
        return self._file.fileno()

    def _passed(self, piece: bytes) -> bytes:
        data = self._held + piece
        if self._is_first:
            self._is_document = _is_document(data)
            self._is_first = False
        at = data.rfind(b"\n") + 1
        rest = data[at:]
        was_inside, self._is_inside = self._is_inside, self._is_inside and not at
        waits = not self._is_inside and len(rest) <= _LONGEST and (self._is_document or _may_begin(rest))
        if not (waits or self._has_any(data, was_inside)):
            self._held, self._is_inside = b"", True
            return data
        told = self._lines(data[:at], was_inside)
        self._held, self._is_inside = (rest, self._is_inside) if waits else (b"", True)
        return told if waits else told + rest

    def _has_any(self, data: bytes, was_inside: bool) -> bool:
        """Whether a line of JSON may begin in it; of most logs no line begins so."""
        begins = not was_inside and data.startswith(_BEGINS)
        return self._is_document or begins or (b"\n{" in data and any(b"\n" + one in data for one in _BEGINS))

    def _lines(self, data: bytes, was_inside: bool) -> bytes:
        if not self._has_any(data, was_inside):
            return data
        first, *lines = data.split(b"\n")
        return b"\n".join([first if was_inside else self._line(first), *map(self._line, lines)])

    def _line(self, line: bytes) -> bytes:
        if not (self._is_document or line.startswith(_BEGINS)):
            return line
        words = [found[1] for found in _WORDS.finditer(line)]
        times = _TIME.search(line)
        if not self._is_document:
            return _written(words, times[1] if times else b"", line) if words else line
        # Of a document each key has a line of its own: a time counts for the words that follow it.
        if times:
            self._seen_at = times[1]
        if b"}" in line:
            seen, self._seen_at = self._seen_at, b""
        else:
            seen = self._seen_at
        return _written(words, seen, line) if words else b""


def _may_begin(rest: bytes) -> bool:
    return any(rest.startswith(one) or one.startswith(rest) for one in _BEGINS)


def _is_document(begins: bytes) -> bool:
    """Whether a log is one JSON value of many lines, in which program's words stand."""
    head = begins[:_BEGIN].lstrip(b"\xef\xbb\xbf \t\r\n")
    return re.match(rb"[\[{]\r?\n\s+[\"{]", head) is not None and _WORDS.search(begins) is not None


def _written(words: list[bytes], at: bytes, line: bytes) -> bytes:
    node = _NODE.search(line)
    texts = "\n".join(map(_unquoted, words)).strip("\r\n").splitlines()
    begins = _told_at(at.decode()) + (f"[pod/{node[1].decode().replace('/', '.')}/] " if node else "")
    return (begins + "\r".join(texts)).encode(errors="replace")


def _unquoted(string: bytes) -> str:
    text = string.decode("utf-8", "replace")
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:  # it is cut off
        return text.replace("\\n", "\n").replace('\\"', '"')


def _told_at(at: str) -> str:
    if _ISO.match(at):
        return f"{at} "
    digits = at.replace(".", "")
    if not digits.isdigit():
        return ""
    seconds = float(f"{digits[:_SECONDS_DIGITS]}.{digits[_SECONDS_DIGITS:] or 0}")
    return f"{datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z "
