"""The rank that holds the others up is named from flight recorders, in simulated programs with one fault each."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from allranks.evidence.collectives import ABSENT, CIRCLE, MISMATCH, SILENT, STUCK, Stall, analyse
from allranks.evidence.recording import Recording, recording, recording_from_message

Call = tuple[str, str, int]  # group, operation, size
BLOCK = ("", "block", 0)


@dataclass
class Simulated:
    """Ranks that run their programs until each has ended, blocks, or waits in a collective."""

    groups: Mapping[str, tuple[int, ...]]
    programs: list[list[Call]]
    names: Mapping[str, str]
    """Of groups: those that split one mesh may have one name."""

    def run(self) -> None:
        self.position = [0] * len(self.programs)
        self.calls: list[dict[str, list[Call]]] = [{} for _ in self.programs]
        self.order: list[list[tuple[str, int]]] = [[] for _ in self.programs]
        inside: dict[int, tuple[str, int]] = {}
        moves = True
        while moves:
            moves = False
            for rank, program in enumerate(self.programs):
                if rank not in inside and self.position[rank] < len(program):
                    call = program[self.position[rank]]
                    if call == BLOCK:
                        continue
                    own = self.calls[rank].setdefault(call[0], [])
                    own.append(call)
                    inside[rank] = (call[0], len(own))
                    self.order[rank].append(inside[rank])
                    moves = True
            for group, number in list(inside.values()):
                members = self.groups[group]
                entered = [self.calls[one].get(group, [])[number - 1 : number] for one in members]
                if all(entered) and len({one[0] for one in entered}) == 1:
                    for one in members:
                        if inside.get(one) == (group, number):
                            del inside[one]
                            self.position[one] += 1
                            moves = True
        self.inside = inside

    def hangs(self) -> bool:
        return bool(self.inside)

    def recording(self, rank: int, ring: int = 2000, nccl: bool = False, counts: bool = True) -> Recording:
        """As `train.evidence.recorded` answers."""
        entries, numbers = [], {group: number for number, group in enumerate(self.groups)}
        for record, (group, number) in enumerate(self.order[rank]):
            _, operation, size = self.calls[rank][group][number - 1]
            is_done = self.inside.get(rank) != (group, number)
            entries.append(
                {
                    "record_id": record,
                    "pg_id": numbers[group],
                    "process_group": [self.names[group], group],
                    "collective_seq_id": number,
                    "p2p_seq_id": 0,
                    "is_p2p": False,
                    "profiling_name": f"{'nccl' if nccl else 'gloo'}:{operation}",
                    "input_sizes": [[size]],
                    "output_sizes": [[size]],
                    "input_dtypes": ["Float"],
                    "state": "completed" if nccl and is_done else "scheduled",
                    "retired": is_done,
                    "time_created_ns": record + 1,
                }
            )
        mine = {self.names[group]: ranks for group, ranks in self.groups.items() if rank in ranks}
        status = {
            str(numbers[group]): {"last_enqueued_collective": str(len(own)), "last_completed_collective": "-1"}
            for group, own in self.calls[rank].items()
        }
        dump = {"entries": entries[-ring:], "pg_status": status if counts else {}}
        dump["pg_config"] = (
            {name: {"name": name, "desc": name, "ranks": str(list(ranks))} for name, ranks in mine.items()}
            if nccl
            else {"": {"desc": "", "name": "", "ranks": "[]"}}
        )
        groups = {} if nccl else {name: {"desc": name, "ranks": list(ranks)} for name, ranks in mine.items()}
        return recording({"recorders": [dump], "groups": groups})


def _mesh(ranks: int, rng: random.Random) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """All ranks, and the two sides of an HSDP mesh."""
    shard = rng.choice([size for size in range(1, ranks + 1) if ranks % size == 0])
    groups = {"all": tuple(range(ranks))}
    names = {"all": "0"}
    for first in range(0, ranks, shard):
        groups[f"shard-{first}"] = tuple(range(first, first + shard))
        names[f"shard-{first}"] = "1"  # groups that split one mesh have one name
    for first in range(shard):
        groups[f"replicate-{first}"] = tuple(range(first, ranks, shard))
        names[f"replicate-{first}"] = "2"
    return {name: members for name, members in groups.items() if len(members) > 1}, names


def _programs(groups: Mapping[str, tuple[int, ...]], ranks: int, rng: random.Random) -> list[list[Call]]:
    """The same steps on all ranks, each in its own groups."""
    kinds = sorted({group.partition("-")[0] for group in groups})
    step = [
        (rng.choice(kinds), rng.choice(["all_reduce", "_allgather_base", "broadcast", "barrier"]), rng.randint(1, 3))
        for _ in range(rng.randint(1, 6))
    ]
    step = [(kind, operation, 0 if operation == "barrier" else size) for kind, operation, size in step]
    told = step * rng.randint(1, 4)
    own = [
        {group.partition("-")[0]: group for group, members in groups.items() if rank in members}
        for rank in range(ranks)
    ]
    return [[(own[rank][kind], *rest) for kind, *rest in told if kind in own[rank]] for rank in range(ranks)]


def _inject(kind: str, programs: list[list[Call]], rank: int, at: int) -> None:
    group, operation, size = programs[rank][at]
    other = "all_to_all" if operation != "all_to_all" else "scatter"
    new = {
        "skip": [],
        "block": [BLOCK],
        "operation": [(group, other, size)],
        "shape": [(group, "all_reduce", size + 10)],
        "extra": [(group, other, size), (group, operation, size)],
    }[kind]
    programs[rank][at : at + 1] = new


def _check(found: list[Stall], rank: int, told: object) -> None:
    assert found, told
    first = found[0]
    assert rank in first.ranks, (first, told)
    for stall in found:
        assert not stall.sure or stall.ranks == (rank,), (stall, told)


@pytest.mark.parametrize("part", range(4))
def test_one_fault_is_named_and_no_healthy_rank_for_certain(part):
    for seed in range(part * 50, part * 50 + 50):
        _try_a_fault(seed)


def _try_a_fault(seed: int) -> None:
    rng = random.Random(seed)
    ranks = rng.choice([2, 2, 3, 4, 4, 6, 6, 8, 8, 16]) if seed % 50 else 64
    groups, names = _mesh(ranks, rng)
    programs = _programs(groups, ranks, rng)
    rank = rng.randrange(ranks)
    kind = rng.choice(["skip", "block", "operation", "shape", "extra"])
    at = rng.randrange(len(programs[rank]))
    _inject(kind, programs, rank, at)
    run = Simulated(groups, programs, names)
    run.run()
    if not run.hangs():
        assert kind == "block"  # in place of what nobody misses
        return
    nccl, counts = rng.random() < 0.5, rng.random() < 0.7
    ring = rng.choice([2000, 2000, 3])
    recordings = {one: run.recording(one, ring, nccl, counts) for one in range(ranks)}
    blocked = {rank: "data.py:7 in read"} if run.position[rank] < len(programs[rank]) and kind == "block" else {}
    _check(analyse(recordings, blocked), rank, (seed, kind, ranks))
    # The same over the wire, cut to what is sent.
    sent = {one: recording_from_message(told.newest(4).to_message()) for one, told in recordings.items()}
    _check(analyse(sent, blocked), rank, (seed, kind, ranks, "sent"))


def _run(programs: list[list[Call]], groups: Mapping[str, tuple[int, ...]] | None = None) -> Simulated:
    groups = groups or {"all": tuple(range(len(programs)))}
    run = Simulated(groups, programs, {name: str(number) for number, name in enumerate(groups)})
    run.run()
    return run


def _of(run: Simulated, without: tuple[int, ...] = (), **how) -> list[Stall]:
    ranks = range(len(run.programs))
    return analyse({rank: None if rank in without else run.recording(rank, **how) for rank in ranks})


STEP = [("all", "all_reduce", 4), ("all", "broadcast", 2)]


def test_a_rank_that_never_entered():
    run = _run([STEP * 2, STEP * 2, [*STEP, BLOCK]])
    (stall,) = _of(run)
    assert (stall.kind, stall.ranks, stall.sure, stall.sequence) == (ABSENT, (2,), True, 3)
    assert stall.what == "rank 2 never entered all_reduce of 4 float (number 3 of all ranks), in which ranks 0-1 wait"


def test_ranks_that_entered_something_else():
    run = _run([STEP, STEP, [("all", "all_reduce", 5)], STEP])
    (stall,) = _of(run)
    assert (stall.kind, stall.ranks, stall.sure) == (MISMATCH, (2,), True)
    assert "rank 2: all_reduce of 5 float; ranks 0-1, 3: all_reduce of 4 float" in stall.what


def test_of_two_ranks_that_disagree_neither_is_blamed_for_certain():
    (stall,) = _of(_run([STEP, list(reversed(STEP))]))
    assert (stall.kind, stall.ranks, stall.sure) == (MISMATCH, (0, 1), False)


@pytest.mark.parametrize(
    "instead",
    [
        STEP[1:],  # left out a collective
        [("all", "all_gather", 4)],  # another one
        [("all", "all_reduce", 5)],  # another shape
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_of_two_ranks_the_one_that_leaves_what_both_have_always_done_is_blamed_perhaps(instead, rank):
    programs = [STEP * 5, STEP * 5]
    programs[rank] = [*STEP * 3, *instead, *STEP]
    (stall,) = _of(_run(programs))
    assert (stall.kind, stall.ranks, stall.sure, stall.sequence) == (MISMATCH, (rank,), False, 7)
    assert stall.what.endswith(f"rank {1 - rank}: all_reduce of 4 float")
    assert "has followed there 2 times before" in stall.doubts[1]


def test_of_two_ranks_neither_is_blamed_where_both_do_what_is_new():
    (stall,) = _of(_run([[*STEP * 3, ("all", "barrier", 1)], [*STEP * 3, ("all", "all_gather", 1)]]))
    assert stall.ranks == (0, 1)
    (stall,) = _of(_run([[*STEP, *STEP], [*STEP, ("all", "barrier", 1)]]))  # once is no habit
    assert stall.ranks == (0, 1)


def test_how_often_it_was_done_before_outlives_the_cut_to_the_newest_entries():
    run = _run([STEP * 20, [*STEP * 19, ("all", "barrier", 1)]])
    cut = {rank: recording_from_message(run.recording(rank).newest(1).to_message()) for rank in (0, 1)}
    (stall,) = analyse(cut)
    assert (stall.kind, stall.ranks) == (MISMATCH, (1,))


def test_a_victim_of_another_group_is_no_cause():
    """An HSDP mesh of 2 x 2: rank 3 blocks, rank 2 waits for it, and rank 0 for rank 2."""
    groups = {"shard-0": (0, 1), "shard-2": (2, 3), "replicate-0": (0, 2), "replicate-1": (1, 3)}
    names = {group: "1" if group.startswith("shard") else "2" for group in groups}
    steps = [
        [(f"shard-{rank // 2 * 2}", "all_reduce", 1), (f"replicate-{rank % 2}", "all_reduce", 1)] for rank in range(4)
    ]
    steps[3] = [BLOCK]
    run = Simulated(groups, steps, names)
    run.run()
    found = analyse({rank: run.recording(rank) for rank in range(4)}, {3: "data.py:7"})
    assert {stall.ranks for stall in found if stall.kind == ABSENT} == {(3,)}
    assert found[0].ranks == (3,)
    assert found[0].sure


def test_ranks_in_a_circle():
    groups = {"a": (0, 1), "b": (0, 1)}
    run = _run([[("a", "barrier", 1), ("b", "barrier", 1)], [("b", "barrier", 1), ("a", "barrier", 1)]], groups)
    stall = _of(run)[0]
    assert (stall.kind, stall.ranks, stall.sure) == (CIRCLE, (0, 1), False)


def test_all_entered_and_none_left():
    run = _run([STEP, STEP])
    told = {rank: run.recording(rank).to_message() for rank in (0, 1)}
    for one in told.values():
        one["entries"][-1]["is_done"] = False
    (stall,) = analyse({rank: recording_from_message(one) for rank, one in told.items()})
    assert (stall.kind, stall.ranks, stall.sure) == (STUCK, (), False)
    told[1]["entries"][-1]["is_done"] = True
    (stall,) = analyse({rank: recording_from_message(one) for rank, one in told.items()})
    assert "rank 1 left it, rank 0 did not" in stall.what


def test_a_rank_that_told_nothing_is_no_more_than_a_guess():
    run = _run([STEP, STEP, [BLOCK]])
    (stall,) = _of(run, without=(2,))
    assert (stall.kind, stall.ranks, stall.sure) == (SILENT, (2,), False)


def test_dropped_entries_lower_the_claim():
    groups = {"all": (0, 1, 2), "pair": (0, 2)}
    programs = [[*STEP, *STEP], [*STEP, *STEP], [*STEP, *[("pair", "barrier", 1)] * 9, BLOCK]]
    programs[0][2:2] = [("pair", "barrier", 1)] * 9
    run = _run(programs, groups)
    assert [(stall.ranks, stall.sure) for stall in _of(run)] == [((2,), True)]
    assert [(stall.ranks, stall.sure) for stall in _of(run, ring=10, counts=False)] == [((2,), True)]  # one is left
    assert [(stall.ranks, stall.sure) for stall in _of(run, ring=10)] == [((2,), True)]
    (stall,) = _of(run, ring=3, counts=False)
    assert (stall.ranks, stall.sure, stall.doubts) == ((2,), False, ("the recorder has dropped entries",))


def test_a_healthy_run_has_nothing_to_tell():
    assert _of(_run([STEP * 3, STEP * 3])) == []
    assert analyse({}) == []
    assert analyse({0: None, 1: None}) == []


@pytest.mark.parametrize(
    "message",
    [None, [], "x", {}, {"entries": 3}, {"entries": [None, {}, {"sequence": "x", "operation": 3}], "groups": [1, {}]}],
)
def test_what_is_no_recording_harms_nobody(message):
    told = recording_from_message(message)
    assert told is None or told.entries == ()
    assert (
        recording({"recorders": [message, {"entries": [{"collective_seq_id": {}, "profiling_name": 1}]}]}).entries == ()
    )
    assert analyse({0: told}) == []
