"""The options in a directive of the user's own, as getopt reads them: `-N9`, `-HN 9`, `--nodes 9 --time=1:00`."""

import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from allranks.errors import UsageError


@dataclass(frozen=True)
class Letters:
    """A scheduler's short options: those that stand alone, and those that take a value."""

    alone: str
    with_value: str


def options_in(directive: str, letters: Letters) -> Iterator[tuple[str, str]]:
    """(name, value) of every option: a name is one letter, or a word as in `--word`; a missing value is "".

    A word that begins with `-` counts as an option even where the scheduler would take it for a value: nothing passes
    unseen. Raises UsageError for what no scheduler could read.
    """
    try:
        words = shlex.split(directive)
    except ValueError:
        raise UsageError(f"--directive {directive!r}: a quote in it is not closed") from None
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        value = "" if following.startswith("-") else following
        if word.startswith("--"):
            name, equals, attached = word[2:].partition("=")
            if name:
                yield name, attached if equals else value
        elif word.startswith("-"):
            yield from _of_letters(directive, word[1:], value, letters)


def _of_letters(directive: str, word: str, following: str, letters: Letters) -> Iterator[tuple[str, str]]:
    for place, letter in enumerate(word):
        if letter in letters.alone:
            yield letter, ""
        elif letter in letters.with_value:
            yield letter, word[place + 1 :] or following
            return
        else:
            raise UsageError(f"--directive {directive!r}: the scheduler has no option -{letter}")


def is_one_of(name: str, ours: Collection[str], others: Collection[str] = ()) -> str | None:
    """The option of `ours` that `name` stands for: also shortened, as getopt_long takes it, unless it is one of
    `others` as it stands."""
    if name in ours:
        return name
    if len(name) == 1 or name in others:
        return None
    return next((our for our in ours if len(our) > 1 and our.startswith(name)), None)
