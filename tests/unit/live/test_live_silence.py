"""Who hangs of anyone's program, of which only output, CPU and the state of its processes are known."""

from dataclasses import replace

import pytest

from allranks.live import LiveTable, NodeState, RankState
from allranks.live.deadlines import overdue
from allranks.live.picture import picture
from allranks.live.silence import Silence

LIMIT = Silence(60.0)
NAMES = ("rank 0 (node 0, gpu0)", "rank 1 (node 1, gpu1)")


def rank(number: int, age: float | None, cpu: float | None = 0.0, state: str = "S") -> RankState:
    return RankState(rank=number, output_age_seconds=age, cpu_use=cpu, process_state=state)


def table(*ranks: RankState) -> LiveTable:
    return LiveTable(nodes=tuple(NodeState(node=one.rank, host=f"gpu{one.rank}", ranks=(one,)) for one in ranks))


@pytest.mark.parametrize(
    "ranks",
    [
        (rank(0, 61), rank(1, 59)),  # one of them speaks
        (rank(0, 61), rank(1, None)),  # nothing is known of it
        (rank(0, 600, state="gone"), rank(1, 600, state="Z")),  # they have ended
        (),
    ],
)
def test_who_speaks_or_is_gone_does_not_hang(ranks: tuple[RankState, ...]) -> None:
    assert overdue(table(*ranks), LIMIT, 0.0) == []


@pytest.mark.parametrize(
    ("ranks", "says", "who"),
    [
        ((rank(0, 61), rank(1, 90)), "; none of them uses its CPU", None),
        ((rank(0, 61, 1.0), rank(1, 9e9)), "; {} uses its CPU, and {} does not", None),
        ((rank(0, 61, 1.0), rank(1, 90, 0.9)), "; all of them use their CPUs, so they may only be slow", None),
        ((rank(0, 61), rank(1, 90, 0.0, "T")), ", and rank 1 (node 1, gpu1) is stopped (state T)", 1),
        ((rank(0, 61, 1.0), rank(1, 90, 0.0, "D")), ", and rank 1 (node 1, gpu1) waits in the kernel (state D)", 1),
        (
            (rank(0, 61), rank(1, 5, state="gone")),
            "; none of them uses its CPU; {1} has ended before, and the others may wait for that",
            1,
        ),
    ],
)  # fmt: skip
def test_only_what_is_known_is_said_of_those_that_are_silent(
    ranks: tuple[RankState, ...], says: str, who: int | None
) -> None:
    (found,) = overdue(table(*ranks), LIMIT, 0.0)
    assert (
        found.what
        == f"no rank has written anything for 61 s, longer than --hang-timeout allows (60 s){says.format(*NAMES)}"
    )
    assert (found.code, found.who.rank) == ("hang", who)


@pytest.mark.parametrize(
    ("written", "age", "allowed"),
    [((0, 0), 299, None), ((0, 0), 301, "a start may take (300 s)"), ((0, 9), 61, "--hang-timeout allows (60 s)")],
)
def test_before_any_of_them_has_written_anything_more_time_is_given(
    written: tuple[int, int], age: float, allowed: str | None
) -> None:
    ranks = [replace(rank(number, age), output_bytes=size) for number, size in enumerate(written)]
    found = overdue(table(*ranks), LIMIT, 0.0)
    assert [one.what for one in found] == (
        [f"no rank has written anything for {age} s, longer than {allowed}; none of them uses its CPU"]
        if allowed
        else []
    )


def test_the_picture_shows_what_there_is_without_events() -> None:
    shown = picture(table(rank(0, 3.0, 0.97), rank(1, 75.0, 0.0, "T")))
    assert "no steps are told of; the last output was 3s ago" in shown
    head, first, second = [line.split() for line in shown.splitlines() if line.strip()][2:5]
    assert head == ["node", "host", "rank", "phase", "CPU", "silent"]
    assert first == ["0", "gpu0", "0", "runs", "97%"]
    assert second == ["1", "gpu1", "1", "runs,", "stopped", "0%", "75s"]
