"""Ask at the terminal, and again until the answer is one that can be taken."""

import contextlib
import shlex
import sys
from collections.abc import Callable
from typing import TypeVar

from allranks.errors import UsageError
from allranks.observe.enduring import say

T = TypeVar("T")


def ask(question: str, taken: Callable[[str], T], default: str = "") -> T:
    """What `taken` makes of the user's answer; where it raises UsageError, that is told and the question asked again.

    An empty answer is `default`. Raises UsageError at the end of the input (Ctrl-D).
    """
    while True:
        answer = _line(f"{question} [{default}]: " if default else f"{question}: ").strip() or default
        if not answer:
            continue
        try:
            return taken(answer)
        except UsageError as error:
            say(f"error: {error}", file=sys.stderr)


def unquoted(path: str) -> str:
    """A path as a shell would read it, where it is one word there: terminals quote files that are dropped on them."""
    try:
        words = shlex.split(path)
    except ValueError:
        return path
    return words[0] if len(words) == 1 else path


def _line(prompt: str) -> str:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (makes `input` a line that can be edited)
    try:
        if sys.stdout.isatty():
            return input(prompt)
        sys.stderr.write(prompt)  # `allranks init > log`: the question is for who sits there
        sys.stderr.flush()
        return input()
    except EOFError:
        say("", file=sys.stderr)
        raise UsageError("the input ended before all was answered; no config was written") from None
