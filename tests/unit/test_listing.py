import re
from pathlib import Path

import pytest

import allranks
from allranks.listing import few


@pytest.mark.parametrize(
    ("things", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (range(3), "0, 1, 2"),
        (range(4), "0, 1, 2 and 1 more"),
        (range(5003), "0, 1, 2 and 5,000 more"),
    ],
)
def test_what_does_not_fit_is_counted(things, said):
    assert few(things, 3) == said
    assert few(iter(things), 3) == said


def test_lines():
    assert few("abc", 2, between="\n", rest="\n  and {:,} more lines") == "a\nb\n  and 1 more lines"


def test_nobody_counts_what_is_left_for_themselves():
    """Sources that have a list and want a few of it use this file."""
    top = Path(allranks.__file__).parent
    own = [
        f"{path.relative_to(top)}: {line.strip()}"
        for path in top.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"len\(\w+\) - \w+\} (?:\w+ )?more", line)
    ]
    assert own == []


def test_nobody_writes_sizes_on_disks_and_networks_for_themselves():
    """`si_bytes` does; memory, in powers of 1024, is written in doctor/memory.py."""
    top = Path(allranks.__file__).parent
    own = [
        f"{path.relative_to(top)}: {line.strip()}"
        for path in top.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\} ?[kMGT]B\b", line) and path.name != "listing.py"
    ]
    assert own == []
