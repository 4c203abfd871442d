"""Secrets that are broken over lines: by a terminal's width, by what prints structures, by a shell's backslash."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence

from allranks.secret_names import is_secret_name
from allranks.secrets import REMOVED, shaped_secrets

# The end of a line and the beginning of the next, with what printers put there: quotes, `+` or a backslash,
# indentation, the prefix of a rank, the signs of a quotation or comment.
_BREAK = re.compile(
    r"""["']?[ \t]*[+\\]?[ \t]*\n(?:\[[\w .:/-]{1,40}\]:?)?[ \t]*(?:[|>#]+[ \t]*)?(?:[bBrRuUfF]{0,2}["'])?"""
)
_AROUND_NAME = " \t=:>|\\\"'([{-"
_LAST_NAME = re.compile(r"[\w.-]+\Z")
_WORD = re.compile(r"""[^\s"',;}\])]{1,8192}""")
_NAME, _NAME_OF_HEADER, _SHORTEST = 80, 8, 16
_NEAR = 512  # signs on either side of a break
_WRAPPED = 40  # signs of a line that a printer may have broken for its length


class Joined:
    """A text with its lines joined, and where each part of it stands in the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        parts, self._starts, self._places = [], [0], [0]
        size = at = 0
        for found in _BREAK.finditer(text):
            parts.append(text[at : found.start()])
            size += found.start() - at
            at = found.end()
            self._starts.append(size)
            self._places.append(at)
        parts.append(text[at:])
        self.text = "".join(parts)

    def secrets(self) -> Iterator[str]:
        """What is a secret by its shape, or by the name before it, once its lines are joined."""
        for start, end in shaped_secrets(self.text):
            breaks = self._breaks(start, end)
            # What is a secret without the next line may have ended there, and a word of small letters is that line's.
            while breaks and _is_a_word(self.text[breaks[-1] : end]) and _has_shape(self.text[start : breaks[-1]]):
                end = breaks.pop()
            if breaks:
                yield self.text[start:end]
        for index, start in enumerate(self._starts[1:], start=1):
            begin = self._starts[index - 1]
            line = self.text[begin:start]
            end = self._starts[index + 1] if index + 1 < len(self._starts) else len(self.text)
            word = _WORD.match(self.text, start, end)
            if word is None:
                continue
            yield from _of_two_lines(line[-_NEAR:], word[0][:_NEAR])
            named = _LAST_NAME.search(line[-_NAME:].rstrip(_AROUND_NAME))
            if named and is_secret_name(named[0].lstrip("-")):
                yield word[0]
            elif len(line) >= _WRAPPED and (value := _named_value(line[-_NEAR:])):
                yield value + word[0]

    def without(self, secrets: Sequence[str]) -> str:
        """The text, with those that are broken in it replaced, each of their parts."""
        gone: list[tuple[int, int]] = []
        for secret in secrets:
            at = self.text.find(secret)
            while at >= 0:
                if self._breaks(at, at + len(secret)):
                    gone += self._parts(at, at + len(secret))
                at = self.text.find(secret, at + 1)
        kept, at = [], 0
        for start, end in sorted(gone):
            if end > at:
                kept += [self._text[at : max(at, start)], REMOVED]
                at = end
        return "".join([*kept, self._text[at:]])

    def _breaks(self, start: int, end: int) -> list[int]:
        """Where lines were joined within a part of the joined text."""
        return self._starts[bisect.bisect_right(self._starts, start) : bisect.bisect_left(self._starts, end)]

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The same part in the text itself, line by line."""
        for begin, stop in zip([start, *self._breaks(start, end)], [*self._breaks(start, end), end], strict=True):
            line = bisect.bisect_right(self._starts, begin) - 1
            place = self._places[line] + begin - self._starts[line]
            yield place, place + stop - begin


def _of_two_lines(line: str, word: str) -> Iterator[str]:
    """Some shapes have an end, which what follows would hide. `word` begins the line below."""
    last = max(line.rfind(sign) for sign in " \t\"',;")
    head = line[max(0, last - _NAME_OF_HEADER) :]
    if len(line) - last - 1 + len(word) < _SHORTEST:
        return
    for start, end in shaped_secrets(head + word):
        if start < len(head) < end:
            first, rest = head[start:], word[: end - len(head)]
            if not (_is_a_word(rest) and _has_shape(first)):
                yield first + rest


def _is_a_word(text: str) -> bool:
    return (text.isalpha() and text[1:].islower()) or not text


def _has_shape(text: str) -> bool:
    return any(True for _ in shaped_secrets(text))


_VALUE_AT_END = re.compile(
    r"""(?<![\w.-])(?P<name>[\w.-]+)["']?[ \t]*(?:[:=]=?|=>)[ \t]*["']?(?P<value>[^\s"',;]{4,})$"""
)


def _named_value(line: str) -> str:
    """What the end of a line assigns to the name of a secret; "" for nothing of the kind."""
    found = _VALUE_AT_END.search(line)
    return found["value"] if found and is_secret_name(found["name"]) else ""
