"""Who hangs, by the table alone."""

import random
from dataclasses import fields, replace

import pytest

from allranks.config import load_config
from allranks.live import LiveTable, NodeState, RankState
from allranks.live.deadlines import Limits, limits_of, overdue

NOW = 10_000.0
LIMITS = Limits(step=60.0, num_medians=10.0, first_step=300.0, checkpoint=500.0, model=200.0, rendezvous=100.0)


def table(*ranks: RankState) -> LiveTable:
    """Each rank on a node of its own."""
    nodes = (NodeState(node=rank.rank, host=f"host{rank.rank}", t=NOW, ranks=(rank,)) for rank in ranks)
    return LiveTable(t=NOW, nodes=tuple(nodes))


def at(rank: int, phase: str, seconds: float, step: int | None = None, **more) -> RankState:
    return RankState(rank=rank, phase=phase, step=step, since=NOW - seconds, process_state="S", **more)


def test_the_rank_that_is_behind_is_named_and_not_those_that_wait() -> None:
    (found,) = overdue(table(at(0, "train", 301), at(1, "model", 150), at(2, "train", 299)), LIMITS, NOW)
    assert (found.who.node, found.who.rank, found.who.host) == (1, 1, "host1")
    assert found.what == (
        "rank 1 (node 1, host1) has been in phase model for 150 s: rank 0 (node 0, host0) waits for that, in phase "
        "train for 301 s, longer than hang_timeout allows (first_step: 300 s)"
    )


def test_a_rank_that_has_not_made_a_step_that_others_have_is_behind() -> None:
    (found,) = overdue(table(at(0, "train", 61, 8), at(1, "train", 62, 7)), LIMITS, NOW)
    assert found.who.rank == 1
    assert "in phase train after step 7 for 62 s, longer than hang_timeout allows (step: 60 s)" in found.what


def test_a_rank_in_a_save_is_behind_those_that_have_left_it() -> None:
    (found,) = overdue(table(at(0, "train", 61, 8), at(1, "checkpoint", 61, 8)), LIMITS, NOW)
    assert found.who.rank == 1


def test_where_all_are_at_the_same_place_none_is_blamed() -> None:
    (found,) = overdue(table(at(0, "train", 61, 8), at(1, "train", 59, 8)), LIMITS, NOW)
    assert "rank 0 (node 0, host0), rank 1 (node 1, host1) have been" in found.what
    assert "by their events none of them is behind the others" in found.what
    assert found.who.rank is None


@pytest.mark.parametrize(("state", "said"), [("D", "waits in the kernel"), ("T", "is stopped")])
def test_a_process_that_does_not_run_is_named_first(state: str, said: str) -> None:
    stuck = replace(at(2, "checkpoint", 501, 8), process_state=state)
    (found,) = overdue(table(at(0, "checkpoint", 501, 8), at(1, "checkpoint", 501, 8), stuck), LIMITS, NOW)
    assert found.who.rank == 2
    assert said in found.what


@pytest.mark.parametrize(
    "rank",
    [
        at(0, "train", 299),
        at(0, "train", 59, 8),
        at(0, "train", 999, 8, median_step_seconds=100.0),  # ten of its steps have not passed
        at(0, "data", 1e6),
        at(0, "done", 1e6),
        at(0, "a phase of a later version", 1e6),
        at(0, "train", 1e6, 8, exit_code=1),
        replace(at(0, "train", 1e6, 8), process_state="gone"),
        RankState(rank=0),
        RankState(rank=0, phase="train", step=3),
    ],
)
def test_who_may_take_its_time(rank: RankState) -> None:
    assert overdue(table(rank), LIMITS, NOW) == []


def test_a_slow_rank_that_makes_steps_does_not_hang() -> None:
    """However ranks of a run are apart: while each makes its steps in time, there is no hang, and then there is one."""
    dice = random.Random(3)
    for _ in range(200):
        ranks = [at(rank, "train", dice.uniform(0, 59), dice.randint(1, 9)) for rank in range(dice.randint(1, 9))]
        assert overdue(table(*ranks), LIMITS, NOW) == []
        (found,) = overdue(table(*ranks), LIMITS, NOW + 61)
        behind = {rank.rank for rank in ranks if rank.step == min(one.step or 0 for one in ranks)}
        assert found.who.rank in (behind if len(behind) < len(ranks) or len(ranks) == 1 else {None})


def config(**keys):
    needed = {"base_model": "x", "datasets": [{"path": "x", "type": "completion"}], "output_dir": "out"}
    flat = {**needed, "learning_rate": 0.001, "max_steps": 3, **keys}
    return load_config(flat)


def test_each_key_sets_its_limit() -> None:
    names = [each.name for each in fields(Limits) if each.name != "num_medians"]
    for number, name in enumerate(names, start=7):
        limits = limits_of(config(hang_timeout={name: number}))
        assert getattr(limits, name) == number
        others = [getattr(limits, other) == getattr(Limits(), other) for other in names if other != name]
        assert all(others)
    assert limits_of(config(hang_timeout={"step": 5})).num_medians == 0


@pytest.mark.parametrize("seconds", [1, 20, 100, 300, 1000, 10_000])
def test_a_hang_is_found_before_a_collective_that_was_given_less_time_ends(seconds: int) -> None:
    limits = limits_of(config(ddp_timeout=seconds))
    for name in ("rendezvous", "mesh", "model", "first_step", "step"):
        assert getattr(limits, name) < seconds
    assert limits.num_medians == 0
