"""Which rank a hanging collective waits for, from the flight recorders of all ranks, of gloo or NCCL.

By precedence: a rank that never entered it; ranks that entered something else in its place; and a collective that all
have entered and none has left. A rank that is itself kept waiting elsewhere is no cause, and what has been overwritten
or was not told makes a claim a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from allranks.evidence.python_stacks import named
from allranks.evidence.rank_groups import RankGroup, groups_of
from allranks.evidence.recording import Entry, Group, Recording
from allranks.listing import few

ABSENT, MISMATCH, CIRCLE, SILENT, STUCK = "absent", "mismatch", "circle", "silent", "stuck"

# In these every rank gives as many numbers as every other; in the rest they may differ, or only the root gives any.
_EQUAL_SIZES = frozenset(
    (
        *("all_reduce", "allreduce", "allreduce_coalesced", "reduce", "broadcast"),
        *("_reduce_scatter_base", "reduce_scatter_tensor", "reduce_scatter_tensor_coalesced"),
        *("_allgather_base", "all_gather_into_tensor", "allgather_into_tensor_coalesced"),
    )
)

# Times that an operation has followed on another, after which a rank that does something else stands out.
_OFTEN = 2


@dataclass(frozen=True)
class Stall:
    """What holds the ranks up. `ranks` are to blame: certainly where `sure`, else perhaps; none where that is not
    known. `waiting` wait in collective number `sequence` of `group`. `entries` are what ranks have entered there."""

    kind: str
    ranks: tuple[int, ...]
    sure: bool
    what: str
    group: Group
    sequence: int
    operation: str
    waiting: tuple[int, ...]
    entries: Mapping[int, Entry]
    doubts: tuple[str, ...] = ()


def analyse(recordings: Mapping[int, Recording | None], places: Mapping[int, str] | None = None) -> list[Stall]:
    """What holds ranks up, the likeliest first; empty where nothing waits.

    `recordings` by rank, None for one that told nothing; `places` says where ranks are (from their stacks) that are
    known to run and to be at that place.
    """
    groups = groups_of(recordings)
    waiting = {rank for group in groups for rank in group.waiting} | _awaiting_messages(recordings)
    found: list[Stall] = []
    for group in groups:
        stall = _mismatch(group)
        if stall is None and group.first is not None:
            stall = _not_entered(group, group.first, waiting, places or {})
            stall = stall or _silent(group, group.first) or _stuck(group, group.first)
        if stall is not None:
            found.append(stall)
    if not any(stall.kind in (ABSENT, MISMATCH) for stall in found) and (circle := _circle(groups)):
        found.append(circle)
    return sorted(found, key=_order)


def _order(stall: Stall) -> tuple[int, int]:
    kinds = {ABSENT: 0 if stall.sure else 2, MISMATCH: 1, CIRCLE: 3, SILENT: 4, STUCK: 5}
    return kinds[stall.kind], min((entry.created_ns for entry in stall.entries.values()), default=0)


def _awaiting_messages(recordings: Mapping[int, Recording | None]) -> set[int]:
    return {
        rank
        for rank, one in recordings.items()
        if one is not None and any(entry.is_message and not entry.is_done for entry in one.entries)
    }


def _mismatch(group: RankGroup) -> Stall | None:
    """The first collective that ranks do not agree on."""
    sequences = sorted({sequence for own in group.entries.values() for sequence in own})
    for sequence in sequences:
        entries = group.at(sequence)
        kinds: dict[object, list[int]] = {}
        for rank, entry in entries.items():
            kinds.setdefault(_signature(entry), []).append(rank)
        if len(kinds) < 2:
            continue
        most = max(kinds.values(), key=len)
        others = tuple(rank for rank in entries if rank not in most)
        is_majority = len(most) * 2 > len(group.members)
        doubts = [] if is_majority else ["no operation was entered by more than half of the ranks: either may be right"]
        blamed = others if is_majority else tuple(sorted(entries))
        if not is_majority and (usual := _usual(kinds.values(), entries)):
            most, blamed = usual, tuple(sorted(set(entries) - set(usual)))
            doubts.append(
                f"what {named(most)} entered has followed there {entries[most[0]].num_before} times before, and what "
                f"{named(blamed)} entered never: a rank may also be the first to do what comes next"
            )
        if group.silent:
            doubts.append(f"{named(group.silent)} told nothing")
        right = entries[most[0]]
        told = "; ".join(
            f"{named(ranks)}: {entries[ranks[0]]}" for ranks in sorted(kinds.values(), key=len) if ranks is not most
        )
        return Stall(
            MISMATCH,
            blamed,
            is_majority,
            f"ranks entered different operations as number {sequence} of {group}: {told}; {named(most)}: {right}",
            group.group,
            sequence,
            right.operation,
            tuple(rank for rank in entries if not entries[rank].is_done),
            entries,
            tuple(doubts),
        )
    return None


def _usual(kinds: Iterable[Sequence[int]], entries: Mapping[int, Entry]) -> list[int] | None:
    """Of ranks that disagree, those who do what they did in the steps before, where the others never did theirs."""
    before = {tuple(ranks): [entries[rank].num_before for rank in ranks] for ranks in kinds}
    old = [ranks for ranks, counts in before.items() if min(counts) >= _OFTEN]
    return list(old[0]) if len(old) == 1 and all(max(before[one]) == 0 for one in before if one != old[0]) else None


def _not_entered(group: RankGroup, sequence: int, waiting: set[int], places: Mapping[int, str]) -> Stall | None:
    absent = tuple(rank for rank in group.absent if rank not in waiting)
    if not absent:
        return None
    entries, doubts = group.at(sequence), []
    share = len(absent) * 2 - len(group.members)
    if share > 0:
        doubts.append("most ranks have not entered it: those that have may have called one too many")
    if share == 0 and not all(rank in places for rank in absent):
        doubts.append("half of the ranks have not entered it, and where they are is not known")
    if set(absent) & group.unsure_of:
        doubts.append("the recorder has dropped entries")
    if not group.is_known:
        doubts.append("which ranks the group has is not known")
    waits = tuple(rank for rank, entry in entries.items() if not entry.is_done)
    one = entries[waits[0]]
    return Stall(
        ABSENT,
        absent,
        not doubts,
        f"{named(absent)} never entered {one} (number {sequence} of {group}), in which {named(waits)} "
        f"wait{'s' if len(waits) == 1 else ''}",
        group.group,
        sequence,
        one.operation,
        waits,
        entries,
        tuple(doubts),
    )


def _circle(groups: list[RankGroup]) -> Stall | None:
    """Ranks that wait for each other in several groups, as where they take them in different orders."""
    waits_for: dict[int, set[int]] = {}
    for one in groups:
        for rank in one.waiting:
            waits_for.setdefault(rank, set()).update(one.absent)
    # Who waits for nobody that waits, and for whom nobody waits, is in no circle.
    ring = set(waits_for)
    size = -1
    while size != len(ring):
        size = len(ring)
        awaited = {other for rank in ring for other in waits_for[rank]}
        ring = {rank for rank in ring & awaited if waits_for[rank] & ring}
    if not ring:
        return None
    where = []
    held: list[tuple[RankGroup, int, tuple[int, ...]]] = []
    for one in groups:
        waits = tuple(rank for rank in one.waiting if rank in ring)
        if waits and one.first is not None and ring & set(one.absent):
            held.append((one, one.first, waits))
            where.append(f"{named(waits)} in {one.entries[waits[0]].get(one.first, 'a later collective')} of {one}")
    group, sequence, waits = held[0]
    members = tuple(sorted(ring))
    return Stall(
        CIRCLE,
        members,
        False,
        f"{named(members)} wait for each other in a circle: {few(where, 4, between='; ')}",
        group.group,
        sequence,
        next(iter(group.at(sequence).values())).operation,
        members,
        group.at(sequence),
        ("which of them left the order that all have to keep is not known",),
    )


def _silent(group: RankGroup, sequence: int) -> Stall | None:
    if not group.silent or group.absent:
        return None
    entries = group.at(sequence)
    one = next(iter(entries.values()))
    return Stall(
        SILENT,
        group.silent,
        False,
        f"{named(tuple(entries))} entered {one} (number {sequence} of {group}); {named(group.silent)} told nothing",
        group.group,
        sequence,
        one.operation,
        group.waiting,
        entries,
        (f"whether {named(group.silent)} entered it is not known",),
    )


def _stuck(group: RankGroup, sequence: int) -> Stall | None:
    if group.absent:
        return None  # they wait elsewhere: another group has the cause
    entries = group.at(sequence)
    waits = tuple(rank for rank, entry in entries.items() if not entry.is_done)
    left = tuple(rank for rank in entries if rank not in waits)
    one = entries[waits[0]] if waits else next(iter(entries.values()))
    who = f"{named(left)} left it, {named(waits)} did not" if left else "none left it"
    return Stall(
        STUCK,
        (),
        False,
        f"{group if str(group) == 'all ranks' else f'all ranks of {group}'} entered {one} (number {sequence}) and "
        f"{who}: what carries it does not get on, the network between them or a device",
        group.group,
        sequence,
        one.operation,
        waits,
        entries,
        ("the recorder does not tell which connection",),
    )


def _signature(entry: Entry) -> tuple[object, ...]:
    """What has to be equal on all ranks."""
    name = entry.operation.lower()
    if name not in _EQUAL_SIZES:
        return (name,)
    return name, sum(math.prod(size) for size in entry.input_sizes), entry.dtypes[:1]
