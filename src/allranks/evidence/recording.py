"""What PyTorch's flight recorder of one rank holds, in one form for gloo and NCCL, torch 2.6 to 2.13."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

_MAX_ENTRIES = 20_000  # TORCH_FR_BUFFER_SIZE is 2,000
_MAX_WORD = 200
_MAX_SIZES = 64
_POINT_TO_POINT = re.compile(r"(send|recv)\D*(\d+)\s*(?:->|<-)\s*(\d+)")


@dataclass(frozen=True)
class Entry:
    """One collective, or one message to or from a peer, that a rank has entered.

    `sequence` counts within the process group `group`, messages apart from collectives. `peer` is the other rank of a
    message, numbered within the group.
    """

    record: int
    group: str
    sequence: int
    operation: str
    input_sizes: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[str, ...] = ()
    is_done: bool = False
    is_message: bool = False
    peer: int | None = None
    created_ns: int = 0
    where: str = ""
    """file:line of the caller, where the recorder took stacks."""
    num_before: int = 0
    """How often this rank had entered the same after the same operation before, so far as is recorded."""

    def __str__(self) -> str:
        shapes = " ".join("x".join(map(str, size)) or "scalar" for size in self.input_sizes[:3])
        dtype = f" {self.dtypes[0].lower()}" if self.dtypes else ""
        return f"{self.operation}{f' of {shapes}{dtype}' if shapes else ''}"


@dataclass(frozen=True)
class Group:
    """A process group: what it is for, and its ranks by their number in it (empty where that is not known)."""

    name: str
    desc: str = ""
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recording:
    """A rank's entries, oldest first. `dropped`: older ones have been overwritten. `enqueued`: how many collectives it
    has entered in each group, where the recorder counts them."""

    entries: tuple[Entry, ...] = ()
    groups: Mapping[str, Group] = field(default_factory=dict)
    dropped: bool = False
    enqueued: Mapping[str, int] = field(default_factory=dict)

    def newest(self, count: int) -> Recording:
        """The same with the last `count` entries of each group, and, as far as that goes, those that are not done."""
        kept: set[int] = set()
        for name in {entry.group for entry in self.entries}:
            own = [entry for entry in self.entries if entry.group == name]
            kept |= {id(entry) for entry in own[-count:]}
            kept |= {id(entry) for entry in [one for one in own if not one.is_done][:count]}
        entries = tuple(entry for entry in self.entries if id(entry) in kept)
        return Recording(entries, self.groups, self.dropped or len(entries) < len(self.entries), self.enqueued)

    def to_message(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "entries": [asdict(entry) for entry in self.entries],
            "groups": [asdict(group) for group in self.groups.values()],
            "dropped": self.dropped,
            "enqueued": dict(self.enqueued),
        }


def recording_from_message(message: object) -> Recording | None:
    """The inverse of `to_message`, for what comes from another node; None for what is no recording."""
    if not isinstance(message, Mapping):
        return None
    groups = [_group(str(one.get("name", "")), one) for one in _mappings(message.get("groups"))]
    entries = [_own_entry(one) for one in _mappings(message.get("entries"))]
    return Recording(
        tuple(entry for entry in entries if entry is not None),
        {group.name: group for group in groups},
        bool(message.get("dropped")),
        _counts(message.get("enqueued")),
    )


def recording(said: Mapping[str, Any]) -> Recording:
    """What a rank answered (in_program/allranks_answers.py) as one recording; what cannot be read is passed over.

    Raises ValueError where the rank could not read its recorder.
    """
    if said.get("error"):
        raise ValueError(str(said["error"])[:_MAX_WORD])
    dumps = _mappings(said.get("recorders"))
    groups = {str(name): _group(str(name), one) for name, one in _items(said.get("groups"))}
    entries: list[Entry] = []
    dropped = False
    enqueued: dict[str, int] = {}
    for dump in dumps:
        told, lost, counts, named = read_dump(dump)
        entries += told
        dropped = dropped or lost
        enqueued |= counts
        # The rank's own account has the groups' ranks also where the recorder has not.
        groups = named | {name: group for name, group in groups.items() if group.ranks or name not in named}
    entries.sort(key=lambda entry: (entry.created_ns, entry.record))
    return Recording(tuple(_counted(entries)), groups, dropped, enqueued)


def _counted(entries: Iterable[Entry]) -> Iterable[Entry]:
    """With how often each has followed on the same before: ranks repeat what they do from step to step."""
    last: dict[str, object] = {}
    seen: Counter[object] = Counter()
    for entry in entries:
        own = (entry.operation, entry.input_sizes, entry.dtypes, entry.peer)
        pair = (entry.group, last.get(entry.group), own)
        yield replace(entry, num_before=seen[pair])
        seen[pair] += 1
        last[entry.group] = own


def read_dump(dump: Mapping[str, Any]) -> tuple[list[Entry], bool, dict[str, int], dict[str, Group]]:
    """Entries, whether older ones are lost, collectives entered by group, and groups of one recorder's dump."""
    given = _mappings(dump.get("entries"))[-_MAX_ENTRIES:]
    entries = [entry for one in given if (entry := _entry(one)) is not None]
    names = {str(one.get("pg_id")): entry.group for one in given if (entry := _entry(one)) is not None}
    counts = {}
    for number, status in _items(dump.get("pg_status")):
        # The count is kept under the number of the group, which entries give beside its name.
        if (count := _integer(status.get("last_enqueued_collective"))) is not None and count >= 0 and number in names:
            counts[names[number]] = count
    groups = {str(name): _group(str(name), one) for name, one in _items(dump.get("pg_config")) if name != ""}
    dropped = bool(entries) and min(entry.record for entry in entries) > 0
    return entries, dropped, counts, groups


def _entry(one: Mapping[str, Any]) -> Entry | None:
    group = one.get("process_group")
    name = str(group[0]) if isinstance(group, Sequence) and not isinstance(group, str) and group else str(group or "")
    is_message = one.get("is_p2p") is True
    sequence = _integer(one.get("p2p_seq_id" if is_message else "collective_seq_id"))
    operation = one.get("profiling_name")
    if sequence is None or not isinstance(operation, str):
        return None
    found = _POINT_TO_POINT.search(operation)
    return Entry(
        record=_integer(one.get("record_id")) or 0,
        group=name[:_MAX_WORD],
        sequence=sequence,
        operation=_word(operation.partition(":")[2] or operation),
        input_sizes=_sizes(one.get("input_sizes")),
        dtypes=_words(one.get("input_dtypes")),
        is_done=one.get("retired") is True or one.get("state") == "completed",
        is_message=is_message,
        peer=(int(found[3]) if found else None) if is_message else None,
        created_ns=_integer(one.get("time_created_ns")) or 0,
        where=_where(one.get("frames")),
    )


def _own_entry(one: Mapping[str, Any]) -> Entry | None:
    sequence, operation = _integer(one.get("sequence")), one.get("operation")
    if sequence is None or not isinstance(operation, str):
        return None
    return Entry(
        record=_integer(one.get("record")) or 0,
        group=_word(str(one.get("group", ""))),
        sequence=sequence,
        operation=_word(operation),
        input_sizes=_sizes(one.get("input_sizes")),
        dtypes=_words(one.get("dtypes")),
        is_done=one.get("is_done") is True,
        is_message=one.get("is_message") is True,
        peer=_integer(one.get("peer")),
        created_ns=_integer(one.get("created_ns")) or 0,
        where=_word(str(one.get("where") or "")),
        num_before=max(0, _integer(one.get("num_before")) or 0),
    )


def _group(name: str, one: Mapping[str, Any]) -> Group:
    ranks = one.get("ranks")
    if isinstance(ranks, str):  # as the recorder writes it: "[0, 1]"
        try:
            ranks = ast.literal_eval(ranks)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            ranks = []
    known = [rank for rank in ranks if _integer(rank) is not None] if isinstance(ranks, (list, tuple)) else []
    return Group(_word(name), _word(str(one.get("desc") or "")), tuple(known))


def _where(frames: object) -> str:
    from allranks.evidence.python_stacks import Frame, own_frame

    told = [
        Frame(str(one.get("filename", "")), _integer(one.get("line")) or 0, str(one.get("name", "")))
        for one in _mappings(frames)
    ]
    return str(own_frame(told)) if told else ""


def _sizes(value: object) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, (list, tuple)):
        return ()
    sizes = [one for one in value[:_MAX_SIZES] if isinstance(one, (list, tuple))]
    return tuple(tuple(number for number in one[:_MAX_SIZES] if _integer(number) is not None) for one in sizes)


def _counts(value: object) -> dict[str, int]:
    return (
        {_word(str(name)): count for name, count in value.items() if _integer(count) is not None}
        if isinstance(value, Mapping)
        else {}
    )


def _words(value: object) -> tuple[str, ...]:
    return (
        tuple(_word(one) for one in value[:_MAX_SIZES] if isinstance(one, str))
        if isinstance(value, (list, tuple))
        else ()
    )


def _word(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:_MAX_WORD])


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value[:_MAX_ENTRIES] if isinstance(one, Mapping)] if isinstance(value, (list, tuple)) else []


def _items(value: object) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not isinstance(value, Mapping):
        return []
    return [(str(name), one) for name, one in list(value.items())[:_MAX_ENTRIES] if isinstance(one, Mapping)]


def _integer(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):  # JSON dumps have counts as texts
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None
