"""One record of a data file, and what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One record and where it came from.

    value: what was read, normally a dict. problem: why it could not be read (value is None then).
    where(): names file and line or index; computed when asked, since finding a line in a JSON list takes time.
    """

    value: Any
    where: Callable[[], str]
    problem: str | None = None


class RecordError(Exception):
    """One record cannot be used. The message names the field, what was expected and what was found."""


def excerpt(value: Any, limit: int = 60) -> str:
    """A value as an error message shows it: short, on one line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
