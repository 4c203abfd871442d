"""A line of a log: where it stands, who wrote it, when, and its words without what wrote them down."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Terminal sequences: CSI, OSC (links, titles), and two-character ones.
ANSI = re.compile(rb"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\)|[@-Z\\^_])")


@dataclass(frozen=True)
class Line:
    """`number` counts from 1 as editors do; `text` is printable. `stream` tells writers without a rank apart; `level`
    is that of Python's logging, where it was. `seconds` are in UTC or in a zone that is not told."""

    file: str
    number: int
    text: str
    rank: int | None = None
    node: str | None = None
    seconds: float | None = None
    stream: str = ""
    level: str = ""
    is_utc: bool = False

    @property
    def place(self) -> str:
        """`FILE:LINE`, as editors open it."""
        return f"{self.file}:{self.number}"


def decoded(raw: bytes) -> str:
    """As text that may be printed: what is no UTF-8 and control characters become a mark."""
    text = raw.decode("utf-8", "replace").replace("\t", "    ")
    return text if text.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in text)
