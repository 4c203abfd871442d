"""Which keys there are, and which one was probably meant."""

import difflib
from collections.abc import Iterable
from functools import cache

from allranks.config.run import SECTION_OF
from allranks.config.spellings import ATTENTION, HINTS, RENAMED


@cache
def known_keys() -> frozenset[str]:
    """Every top-level key that has a meaning here, old spellings included."""
    return frozenset([*SECTION_OF, *ATTENTION, *(key for key in RENAMED if "." not in key)])


def nearest_key(word: str, keys: Iterable[str]) -> str | None:
    """The key that was probably meant: another trainer's word for it, or the one spelt most alike."""
    keys = list(keys)
    hints = {theirs: ours for theirs, ours in HINTS.items() if ours.partition(".")[0] in keys}
    if word in hints:
        return hints[word]
    # Another trainer's word may be misspelt as well.
    close = difflib.get_close_matches(word, [*keys, *hints], n=1, cutoff=0.7)
    return hints.get(close[0], close[0]) if close else None
