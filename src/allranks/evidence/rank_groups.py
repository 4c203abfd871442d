"""The process groups of a run, as the flight recorders of their ranks tell of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from allranks.evidence.python_stacks import named
from allranks.evidence.recording import Entry, Group, Recording

_Key = tuple[str, tuple[int, ...]]  # by name alone, groups that split one mesh may be taken for one


def groups_of(recordings: Mapping[int, Recording | None]) -> list[RankGroup]:
    """All groups that any rank told of; `recordings` by rank, None for one that told nothing."""
    told = {rank: one for rank, one in recordings.items() if one is not None}
    keys: dict[_Key, Group] = {}
    of_rank: dict[int, dict[str, _Key]] = {}
    for rank, one in told.items():
        names = {entry.group for entry in one.entries if not entry.is_message} | set(one.groups)
        for name in names:
            group = one.groups.get(name, Group(name))
            key = (name, group.ranks)
            keys.setdefault(key, group)
            of_rank.setdefault(rank, {})[name] = key
    found = []
    for key, group in keys.items():
        users = [rank for rank, own in of_rank.items() if own.get(key[0]) == key]
        members = group.ranks or tuple(users)
        entries, entered, unsure = {}, {}, set()
        for rank in (rank for rank in members if rank in told):
            own = {e.sequence: e for e in told[rank].entries if e.group == key[0] and not e.is_message}
            entries[rank] = own if of_rank.get(rank, {}).get(key[0]) == key else {}
            counted = told[rank].enqueued.get(key[0])
            entered[rank] = max([*entries[rank], counted or 0])
            if told[rank].dropped and counted is None and not entries[rank]:
                unsure.add(rank)
        found.append(RankGroup(group, tuple(members), bool(group.ranks), entries, entered, frozenset(unsure)))
    return found


@dataclass(frozen=True)
class RankGroup:
    """One process group, as its ranks have told of it."""

    group: Group
    members: tuple[int, ...]
    is_known: bool
    """Whether its ranks are known, not only those that have used it."""
    entries: Mapping[int, Mapping[int, Entry]]
    """By rank and sequence number."""
    entered: Mapping[int, int]
    """How many collectives each rank has entered, at least."""
    unsure_of: frozenset[int]
    """Ranks whose last entries here may have been overwritten."""

    @cached_property
    def first(self) -> int | None:
        """The first collective that some rank has not left."""
        waits = [sequence for own in self.entries.values() for sequence, entry in own.items() if not entry.is_done]
        return min(waits, default=None)

    @cached_property
    def waiting(self) -> tuple[int, ...]:
        return tuple(rank for rank, own in self.entries.items() if any(not entry.is_done for entry in own.values()))

    @cached_property
    def absent(self) -> tuple[int, ...]:
        """Of those that told, who has not entered the first collective that some rank waits in."""
        return tuple(rank for rank in self.entries if self.entered[rank] < (self.first or 0))

    @cached_property
    def silent(self) -> tuple[int, ...]:
        return tuple(rank for rank in self.members if rank not in self.entries)

    def at(self, sequence: int) -> dict[int, Entry]:
        return {rank: own[sequence] for rank, own in self.entries.items() if sequence in own}

    def __str__(self) -> str:
        desc = self.group.desc
        if self.group.name == "0" or desc == "default_pg":
            return "all ranks" if self.is_known else "the default group"
        return f"group {desc if desc and desc != 'undefined' else self.group.name} ({named(self.members)})"
