"""Many things in few words: how messages list names, numbers and lines."""

from collections.abc import Collection
from itertools import islice


def few(things: Collection[object], shown: int = 8, *, between: str = ", ", rest: str = " and {:,} more") -> str:
    """The first `shown` of them, and how many more there are: `a, b, c and 5 more`."""
    text = between.join(map(str, islice(things, shown)))
    return text if len(things) <= shown else text + rest.format(len(things) - shown)
