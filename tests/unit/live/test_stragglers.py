"""Who is slow by itself, by the table alone."""

import random
from dataclasses import replace

import pytest

from allranks.live import LiveTable, NodeState, RankState
from allranks.live.rank_progress import RankProgress
from allranks.live.stragglers import Stragglers, slow_ranks
from allranks.observe.events import StepEvent


def table(step: int, work: list[float], step_seconds: float | None = None, t: float | None = None) -> LiveTable:
    """Each rank on a node of its own; a step takes as long as the slowest, and what is sent besides. Seen at `t`; left
    out, each step takes two seconds."""
    seconds = step_seconds or 1.2 * max(work)
    ranks = [
        RankState(rank=rank, step=step, median_step_seconds=seconds, median_compute_seconds=own)
        for rank, own in enumerate(work)
    ]
    nodes = (NodeState(node=rank.rank, host=f"host{rank.rank}", ranks=(rank,)) for rank in ranks)
    return LiveTable(step=step, t=2.0 * step if t is None else t, nodes=tuple(nodes))


def test_a_rank_that_works_longer_than_the_others_is_named_within_twenty_steps() -> None:
    stragglers = Stragglers()
    told = []
    for step in range(1, 21):
        told += stragglers.read(table(step, [1.0, 2.1, 1.0, 0.9]))
    (event,) = told
    assert (event.of_rank, event.is_slow, event.node, event.host, event.step) == (1, True, 1, "host1", 10)
    assert event.message.startswith(
        "warning: rank 1 (node 1, host1) is slow by itself: it works 2.1 s at its own part of a step of 2.52 s, and "
        "the median of the others 1 s\n  all others wait for it in every step"
    )
    assert [(one.code, one.who.rank, one.who.node) for one in stragglers.found] == [("straggler", 1, 1)]
    for step in range(21, 45):
        told += stragglers.read(table(step, [1.0, 1.0, 1.0, 0.9]))
    assert [(one.message, one.is_slow) for one in told[1:]] == [("rank 1 keeps up with the others again", False)]
    assert stragglers.found == ()


@pytest.mark.parametrize("last_fine", range(40, 45))
def test_a_rank_that_becomes_slow_is_named_within_twenty_steps_whenever_that_is(last_fine: int) -> None:
    """Its own work is known by the steps before, too."""
    ranks, stragglers, told = [RankProgress(0), RankProgress(1)], Stragglers(), []
    for step in range(1, 81):
        for rank in ranks:
            own = 3.0 if rank.state.rank == 1 and step > last_fine else 1.0
            event = StepEvent(t=float(step), step=step, seconds=own, compute_seconds=own, tokens=1)
            rank.read([event])
        nodes = tuple(NodeState(node=rank.state.rank, ranks=(rank.state,)) for rank in ranks)
        told += stragglers.read(LiveTable(step=step, t=float(step), nodes=nodes))
    (event,) = told
    assert event.of_rank == 1 and event.step is not None
    assert last_fine + 8 < event.step <= last_fine + 20


@pytest.mark.parametrize(
    ("states", "is_named"), [("TTRTT", True), ("TRRRR", False), ("TTTTT", False), ("SSRSD", False)]
)
def test_a_rank_that_is_stopped_and_let_go_on_again_and_again_is_slow_by_itself(states, is_named) -> None:
    """As by cpulimit: while it is stopped it does not work. One that stays stopped hangs."""
    stragglers = Stragglers()
    told = []
    for step in range(1, 21):
        seen = table(step, [1.0, 1.0, 1.0])
        first, second, third = seen.nodes
        rank = replace(second.ranks[0], process_state=states[step % 5])
        told += stragglers.read(replace(seen, nodes=(first, replace(second, ranks=(rank,)), third)))
    assert [event.of_rank for event in told] == [1] * is_named
    if is_named:
        assert (
            "rank 1 (node 1, host1) is slow by itself: it was stopped (state T) in 8 of the last 10" in told[0].message
        )


@pytest.mark.parametrize(
    ("idle", "others", "seconds", "is_named"),
    [
        (0.1, 1.5, 30.0, False),
        (0.1, 1.5, 80.0, True),
        (1.5, 0.4, 3.0, True),
        (0.1, 0.1, 3.0, True),
        (None, None, 3.0, True),
    ],
    ids=["others for a while", "others for long", "a core is idle", "only ranks", "not known"],
)
def test_a_rank_that_shares_its_core_with_other_programs_is_not_named_before_that_lasts(
    idle: float | None, others: float | None, seconds: float, is_named: bool
) -> None:
    stragglers = Stragglers()
    told = []
    for step in range(1, 3000):
        t = step * 0.05
        seen = table(step, [0.01, 0.03 if 40 < t < 40 + seconds else 0.01], t=t)
        nodes = tuple(replace(node, idle_cpu=idle, other_cpu_use=others) for node in seen.nodes)
        told += stragglers.read(replace(seen, nodes=nodes))
    assert any(event.is_slow for event in told) == is_named


def test_one_window_in_which_it_keeps_up_is_not_told() -> None:
    stragglers = Stragglers()
    told = []
    for step in range(1, 100):
        is_slow = step not in range(40, 45)
        told += stragglers.read(table(step, [1.0, 2.1 if is_slow else 1.0, 1.0, 0.9]))
    assert [event.is_slow for event in told] == [True]
    assert [one.who.rank for one in stragglers.found] == [1]


def test_its_work_is_never_more_than_the_step_that_is_told() -> None:
    """It has just become slow: the usual step is still that of before."""
    (finding,) = slow_ranks(table(9, [1.0, 3.0], step_seconds=1.5)).values()
    assert "it works 3 s at its own part of a step of 3 s" in finding.what


def test_a_slow_link_is_no_slow_rank() -> None:
    """All wait for what is sent: each step takes long, and nobody works at it."""
    assert slow_ranks(table(9, [1.0, 1.1, 1.0], step_seconds=30.0)) == {}


def test_work_that_is_little_of_the_step_does_not_count() -> None:
    assert slow_ranks(table(9, [1.0, 3.0], step_seconds=20.0)) == {}
    assert list(slow_ranks(table(9, [1.0, 3.0], step_seconds=4.0))) == [1]


def test_a_rank_that_is_only_held_up_now_and_then_is_not_slow_by_itself() -> None:
    """Beside other programs its usual step may take twice as long; those between them do not."""
    seen = table(9, [1.0, 2.0, 1.0])
    first, second, third = seen.nodes
    for low, named in ((0.9, []), (1.9, [1])):
        rank = replace(second.ranks[0], low_compute_seconds=low)
        assert list(slow_ranks(replace(seen, nodes=(first, replace(second, ranks=(rank,)), third)))) == named


def test_what_is_not_known_says_nothing() -> None:
    assert slow_ranks(table(9, [1.0])) == {}
    assert slow_ranks(LiveTable(step=3, nodes=(NodeState(node=0, ranks=(RankState(rank=0), RankState(rank=1))),))) == {}


def test_a_healthy_run_on_a_loaded_machine_names_nobody() -> None:
    """Ranks differ by up to half, and now and then one is held up for a while."""
    dice, stragglers = random.Random(5), Stragglers()
    told = []
    held, until = -1, 0
    for step in range(2000):
        if step >= until and dice.random() < 0.01:
            held, until = dice.randrange(4), step + 4
        work = [dice.uniform(1.0, 1.5) * (5 if rank == held and step < until else 1) for rank in range(4)]
        told += stragglers.read(table(step, work))
    assert told == []
