"""One record of a data file, and what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One record and where it came from.

    value: what was read, normally a dict. problem: why it could not be read (value is None then).
    where(): names file and line or row; computed when asked, since most are never asked.
    """

    value: Any
    where: Callable[[], str]
    problem: str | None = None


class RecordError(Exception):
    """One record cannot be used. The message names the field, what was expected and what was found."""


class UnreadableError(Exception):
    """A file cannot be read on from a place. `where` names file and line or row, `reason` what is wrong."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


def excerpt(value: Any, limit: int = 60) -> str:
    """A value as an error message shows it: short, on one line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
