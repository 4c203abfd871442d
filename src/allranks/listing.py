"""Many things in few words: how messages list names, numbers and lines."""

from collections.abc import Iterable


def few(things: Iterable[object], shown: int = 8, *, between: str = ", ", rest: str = " and {:,} more") -> str:
    """The first `shown` of them, and how many more there are: `a, b, c and 5 more`."""
    texts = [str(thing) for thing in things]
    left = len(texts) - shown
    return between.join(texts[:shown]) + (rest.format(left) if left > 0 else "")


def counted(number: int, of: str) -> str:
    """`1 rule`, `1,204 rules`."""
    return f"{number:,} {of}" if number == 1 else f"{number:,} {of}s"


def si_bytes(num_bytes: float, decimals: int = 1, small: str = "bytes") -> str:
    """A size in powers of 1000, as disks, `df -H` and networks count: `1.2 GB`; below 1 kB in `small`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.{decimals}f} {unit}"
    return f"{num_bytes:.0f} {small}"


def gigabytes(num_bytes: float, decimals: int = 1) -> str:
    """The same in one unit whatever the size, for sizes that stand beside each other: `0.4 GB`, `79.6 GB`."""
    return f"{num_bytes / 1e9:.{decimals}f} GB"


def printable(value: object, most: int = 10_000) -> str:
    """Text from elsewhere as it may be shown: cut, and without what a terminal would take for a command."""
    text = str(value)
    cut = text if len(text) <= most else f"{text[:most]}…"
    return "".join(char if char in "\n\t" or char.isprintable() else "\ufffd" for char in cut)
