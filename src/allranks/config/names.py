"""Which keys there are, and which one was probably meant."""

import difflib
import re
from collections.abc import Callable, Iterable
from functools import cache

from allranks.config.foreign.words import ADVICE, VALUES
from allranks.config.run import SECTION_OF
from allranks.config.spellings import ATTENTION, HINTS, RENAMED


@cache
def known_keys() -> frozenset[str]:
    """Every top-level key that has a meaning here, old spellings included."""
    return frozenset([*SECTION_OF, *ATTENTION, *(key for key in RENAMED if "." not in key)])


def meant_key(word: str, *, flag: Callable[[str], str] = str) -> str:
    """What to say of a top-level key that is not known: `; did you mean …?`, or how it is said here."""
    plain = word.lower().replace("-", "_")
    if plain in ADVICE:
        return f"; here: {ADVICE[plain]}"
    near = nearest_key(plain, [*known_keys(), *ADVICE])
    if near in ADVICE:
        return f"; {near} of another trainer is here {ADVICE[near]}"
    return f"; did you mean {flag(near)}?" if near else "; `allranks config schema` lists all"


def nearest_value(key: str, value: str, choices: Iterable[str]) -> str | None:
    """The value that was probably meant."""
    plain = re.sub(r"[\s-]+", "_", value.strip().lower())
    words = {choice.lower(): choice for choice in choices}
    known = VALUES.get(key, {}).get(plain) or words.get(plain)
    if known:
        return known
    close = difflib.get_close_matches(plain, words, n=1, cutoff=0.6)
    longer = [word for word in words if len(plain) > 2 and word.startswith(plain)]
    return next((words[word] for word in (*close, *longer)), None)


def nearest_key(word: str, keys: Iterable[str]) -> str | None:
    """The key that was probably meant: another trainer's word for it, or the one spelt most alike."""
    keys = list(keys)
    hints = {theirs: ours for theirs, ours in HINTS.items() if ours.partition(".")[0] in keys}
    if word in hints:
        return hints[word]
    # Another trainer's word may be misspelt as well.
    close = difflib.get_close_matches(word, [*keys, *hints], n=1, cutoff=0.7)
    return hints.get(close[0], close[0]) if close else None
