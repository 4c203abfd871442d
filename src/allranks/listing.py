"""Many things in few words: how messages list names, numbers and lines."""

from collections.abc import Iterable


def few(things: Iterable[object], shown: int = 8, *, between: str = ", ", rest: str = " and {:,} more") -> str:
    """The first `shown` of them, and how many more there are: `a, b, c and 5 more`."""
    texts = [str(thing) for thing in things]
    left = len(texts) - shown
    return between.join(texts[:shown]) + (rest.format(left) if left > 0 else "")
