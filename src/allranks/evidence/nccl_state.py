"""What the answers of NCCL's RAS service say of ranks that hang: who is missing, who has entered fewer collectives.

The JSON's fields are those of NCCL 2.28.7 to 2.31 (docs/userguide/source/troubleshooting/ras.rst, src/ras/
client_support.cc). Its ranks are those of a communicator: they are ours where the process is one of our ranks'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allranks.listing import few, printable

# Of ncclResult_t: in order, and still being made.
_SUCCESS, _IN_PROGRESS = 0, 7
_MOST_LINES, _MOST_COMMUNICATORS, _MOST_RANKS = 8, 256, 4096
# On the way to node 0, which takes 200 KiB of each node.
_MOST_TOLD, _MOST_TEXT = 12, 16_384


@dataclass(frozen=True)
class NcclState:
    """`lines` tell what NCCL knows; `behind` are ranks of ours that it misses, or that entered less than others."""

    lines: tuple[str, ...] = ()
    behind: tuple[int, ...] = ()
    what: str = ""
    """Of those behind, in one line."""


def nccl_state(summaries: Sequence[Mapping[str, Any]], ranks: Mapping[int, Mapping[str, Any]]) -> NcclState:
    """What the nodes' answers say together. Each knows the whole job; `ranks`: ours, with the `pid` of each."""
    pids = [about.get("pid") for about in ranks.values()]
    # On several nodes a number may mean several processes.
    ours = {about.get("pid"): rank for rank, about in ranks.items() if pids.count(about.get("pid")) == 1}
    lines: dict[str, None] = {}
    behind: dict[int, str] = {}
    for one in summaries:
        told = one.get("nccl") if isinstance(one, Mapping) else None
        if not isinstance(told, Mapping):
            continue
        for line, blamed in _of_json(told.get("json"), ours):
            lines.setdefault(f"NCCL: {line}")
            for rank in blamed:
                behind.setdefault(rank, line)
        for line in (*_of_text(told.get("text")), *_of_diagnostics(told.get("diagnostics"))):
            lines.setdefault(f"NCCL: {line}")
    return NcclState(tuple(lines)[:_MOST_LINES], tuple(sorted(behind)), next(iter(behind.values()), ""))


def shortened(nccl: Mapping[str, Any]) -> dict[str, Any]:
    """A node's answer as it is told on: each communicator with one rank that has entered most, and those that differ
    from it. Of 1,024 healthy ranks all would be half a megabyte."""
    told = nccl.get("json")
    if not isinstance(told, Mapping):
        return {**nccl, "text": nccl["text"][:_MOST_TEXT]} if isinstance(nccl.get("text"), str) else dict(nccl)
    communicators = []
    for one in _tables(told, "communicators")[:_MOST_COMMUNICATORS]:
        ranks = sorted(_tables(one, "ranks"), key=_entered, reverse=True)
        keys = ("status", "collective_counts")
        differ = [rank for rank in ranks[1:] if any(rank.get(key) != ranks[0].get(key) for key in keys)]
        kept = {
            "ranks": [*ranks[:1], *differ[-_MOST_TOLD:]],
            "missing_ranks": _tables(one, "missing_ranks")[:_MOST_TOLD],
        }
        communicators.append({**one, **kept})
    telling = [one for one in communicators if len(one["ranks"]) > 1 or one["missing_ranks"]]
    return {**nccl, "json": {"nccl_version": told.get("nccl_version"), "communicators": telling[:_MOST_TOLD]}}


def _entered(rank: Mapping[str, Any]) -> int:
    """Collectives of all kinds; fewest where it does not fare well."""
    counts = rank.get("collective_counts")
    numbers = [one for one in counts.values() if isinstance(one, int)] if isinstance(counts, Mapping) else []
    return -1 if _how_it_fares(rank) else sum(numbers)


def _of_json(status: object, ours: Mapping[object, int]) -> Iterator[tuple[str, list[int]]]:
    """Lines, each with the ranks of ours that it blames."""
    for communicator in _tables(status, "communicators")[:_MOST_COMMUNICATORS]:
        where = f"communicator {printable(communicator.get('hash'), 40)} of {communicator.get('size')} ranks"
        missing, present = _tables(communicator, "missing_ranks"), _tables(communicator, "ranks")
        for words, members in _by_words(missing, _how_missing):
            yield f"{words}: {_named(members, ours)} ({where})", _ours(members, ours)
        for words, members in _by_words(present, _how_it_fares):
            yield f"{words}: {_named(members, ours)} ({where})", []
        yield from _counts(present, where, ours)


def _counts(
    present: Sequence[Mapping[str, Any]], where: str, ours: Mapping[object, int]
) -> Iterator[tuple[str, list[int]]]:
    """Which ranks have entered fewer collectives of a kind than others. While ranks train they differ for a moment;
    those of ranks that hang stay apart."""
    counted = [(one, one["collective_counts"]) for one in present if isinstance(one.get("collective_counts"), Mapping)]
    for kind in dict.fromkeys(kind for _, counts in counted for kind in counts):
        of_each = [(one, counts[kind]) for one, counts in counted if isinstance(counts.get(kind), int)]
        most = max((count for _, count in of_each), default=0)
        fewer = [one for one, count in of_each if count < most]
        if fewer:
            counts_of_fewer = sorted({count for _, count in of_each if count < most})
            entered = " to ".join(str(count) for count in dict.fromkeys([counts_of_fewer[0], counts_of_fewer[-1]]))
            line = f"{_named(fewer, ours)} entered {entered} {printable(kind, 40)}, the others {most} ({where})"
            yield line, _ours(fewer, ours)


def _how_missing(rank: Mapping[str, Any]) -> str:
    status = rank.get("status")
    status = status if isinstance(status, Mapping) else {}
    if status.get("considered_dead") is True:
        return "dead, for NCCL has not reached it for a minute"
    return "no answer" if status.get("unresponsive") is True else "left, or not joined yet"


def _how_it_fares(rank: Mapping[str, Any]) -> str:
    status = rank.get("status")
    status = status if isinstance(status, Mapping) else {}
    if status.get("abort_flag") is True:
        return "aborting"
    if isinstance(error := status.get("async_error"), int) and error not in (_SUCCESS, _IN_PROGRESS):
        return f"an error of the network or of a GPU (ncclResult_t {error})"
    if isinstance(state := status.get("init_state"), int) and state != _SUCCESS:
        return "still being connected" if state == _IN_PROGRESS else f"not connected (ncclResult_t {state})"
    return ""


def _of_text(text: object) -> list[str]:
    """Of a version without JSON: what it lists as errors and warnings."""
    lines = text.splitlines() if isinstance(text, str) else []
    begin = next((at for at, line in enumerate(lines) if line.strip() in ("Errors", "Warnings")), len(lines))
    found = [line.strip() for line in lines[begin:]]
    return [line for line in found if line.strip("=") and line not in ("Errors", "Warnings")][:_MOST_LINES]


def _of_diagnostics(found: object) -> list[str]:
    lines = found.get("diagnostics") if isinstance(found, Mapping) else None
    telling = [str(line) for line in (lines if isinstance(lines, list) else []) if str(line).startswith("[INFO]")]
    return [line.removeprefix("[INFO] ") for line in telling[:_MOST_LINES]]


def _by_words(
    ranks: Sequence[Mapping[str, Any]], words_of: Callable[[Mapping[str, Any]], str]
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in ranks:
        if words := words_of(one):
            found.setdefault(words, []).append(one)
    return list(found.items())


def _named(members: Sequence[Mapping[str, Any]], ours: Mapping[object, int]) -> str:
    names = []
    for one in members:
        rank, pid = ours.get(one.get("pid")), one.get("pid")
        names.append(f"rank {rank}" if rank is not None else f"pid {pid} on {printable(one.get('host'), 100)}")
    return few(names, 4)


def _ours(members: Sequence[Mapping[str, Any]], ours: Mapping[object, int]) -> list[int]:
    return [rank for one in members if (rank := ours.get(one.get("pid"))) is not None]


def _tables(table: object, key: str) -> list[Mapping[str, Any]]:
    value = table.get(key) if isinstance(table, Mapping) else None
    return [one for one in (value if isinstance(value, list) else [])[:_MOST_RANKS] if isinstance(one, Mapping)]
