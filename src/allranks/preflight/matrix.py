"""Who reaches whom, as a picture that fits a terminal: a row for each node that connects, a column for each reached."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allranks.cluster.measure.values import Link
from allranks.preflight.check import Pairs, Subject
from allranks.preflight.folding import fold, natural
from allranks.preflight.usual import usual_of

_SHORTEST_LABEL, _LONGEST_LABEL = 12, 40
_REACHED = "rows connect to columns: . reached, # not, 1-9 tenths not, ? not tried"
_CARRIED = "rows send to columns: . as usual, 1-9 tenths less, # nothing, ? not measured"


@dataclass(frozen=True)
class Matrix:
    """Groups of nodes that reach and are reached alike; `cells[row][column]` is one sign for a group's pairs."""

    groups: tuple[tuple[str, ...], ...]
    cells: tuple[str, ...]

    def lines(self, width: int, *, of_rates: bool = False) -> Iterator[str]:
        """The picture, of connections or of rates.

        Where a column for every group does not fit into `width`, neighbouring groups share one.
        """
        most = max(1, width - _SHORTEST_LABEL - 2)
        shown = self._coarser(math.ceil(len(self.groups) / most)) if len(self.groups) > most else self
        room = max(_SHORTEST_LABEL, min(_LONGEST_LABEL, width - 2 - len(shown.groups)))
        labels = [_cut(fold(nodes), room) for nodes in shown.groups]
        widest = max(map(len, labels))
        yield _CARRIED if of_rates else _REACHED
        for label, row in zip(labels, shown.cells, strict=True):
            yield f" {label:>{widest}} {row}".rstrip()

    def _coarser(self, size: int) -> Matrix:
        parts = [range(at, min(at + size, len(self.groups))) for at in range(0, len(self.groups), size)]
        cells = (
            "".join(_mean(self.cells[row][column] for row in rows for column in columns) for columns in parts)
            for rows in parts
        )
        return Matrix(tuple(tuple(node for at in part for node in self.groups[at]) for part in parts), tuple(cells))

    def to_message(self) -> dict[str, Any]:
        return {"groups": [list(nodes) for nodes in self.groups], "cells": list(self.cells)}

    @classmethod
    def from_message(cls, message: object) -> Matrix | None:
        """None for what is no matrix."""
        if not isinstance(message, Mapping):
            return None
        groups, cells = message.get("groups"), message.get("cells")
        if not isinstance(groups, list) or not isinstance(cells, list) or len(groups) != len(cells):
            return None
        rows = [row for row in cells if isinstance(row, str) and len(row) == len(groups) and set(row) <= _SIGNS]
        names = [tuple(node for node in nodes if isinstance(node, str)) for nodes in groups if isinstance(nodes, list)]
        return cls(tuple(names), tuple(rows)) if len(rows) == len(names) == len(groups) else None


_SHADES = ".123456789#"
_SIGNS = frozenset(f"{_SHADES}? ")
_AS_USUAL = 0.5
"""Of the usual rate: less is a number in the picture. Rates of busy hosts differ by some tenths."""
_RDMA_AS_USUAL = 0.8
"""The host has no part in RDMA."""


def matrix(pairs: Pairs) -> Matrix | None:
    """The picture of all pairs, nodes folded that are alike in it; None where every node reaches every other."""
    names = [place.name for place in pairs.places]
    failed = {(source, one.node) for source, one in pairs.unreached if 0 <= one.node < len(names) > source >= 0}
    if not failed:
        return None
    rows: list[set[int]] = [set() for _ in names]
    columns: list[set[int]] = [set() for _ in names]
    for source, target in failed:
        rows[source].add(target)
        columns[target].add(source)
    groups = sorted(_alike(rows, columns), key=lambda group: min(natural(names[place]) for place in group))
    cells = tuple("".join(_sign(source, target, failed, pairs.tried) for target in groups) for source in groups)
    return Matrix(tuple(tuple(sorted((names[p] for p in group), key=natural)) for group in groups), cells)


def rate_matrices(subject: Subject) -> dict[str, Matrix]:
    """The picture of each transport that has a slow link, by its name; that of the ranks has the name ""."""
    measured = subject.measured
    if measured is None:
        return {}
    ways = [("", measured.links, _AS_USUAL)]
    ways += [(one.name, one.links, _RDMA_AS_USUAL if one.kind == "rdma" else _AS_USUAL) for one in measured.others]
    pictures = {name: _rate_matrix(subject.nodes, links, as_usual) for name, links, as_usual in ways}
    return {name: one for name, one in pictures.items() if one is not None}


def _rate_matrix(nodes: Sequence[str], links: Sequence[Link], as_usual: float) -> Matrix | None:
    """What every link carries, a row and a column a node; None where all of them carry about what is usual."""
    usual = usual_of(links)
    if usual <= 0:
        return None
    signs: dict[tuple[str, str], str] = {}
    for one in links:
        rate = one.bytes_per_second
        sign = "#" if rate is None else _shade(max(0.0, 1 - rate / usual)) if rate < as_usual * usual else "."
        signs[one.source, one.target] = max(signs.get((one.source, one.target), "."), sign, key=_SHADES.index)
    if not set(signs.values()) - {"."}:
        return None
    names = [node for node in nodes if any(node in pair for pair in signs)]
    cells = ("".join(" " if a == b else signs.get((a, b), "?") for b in names) for a in names)
    return Matrix(tuple((name,) for name in names), tuple(cells))


def _alike(rows: Sequence[set[int]], columns: Sequence[set[int]]) -> Iterator[list[int]]:
    """The places by what they do not reach and what does not reach them."""
    by_failures: dict[object, list[int]] = {}
    for place in range(len(rows)):
        by_failures.setdefault((frozenset(rows[place]), frozenset(columns[place])), []).append(place)
    # Nodes that do not reach each other differ in this only, that none is said not to reach itself.
    among_themselves: dict[object, list[int]] = {}
    for group in by_failures.values():
        if len(group) > 1:
            yield group
        else:
            (place,) = group
            key = frozenset((*rows[place], place)), frozenset((*columns[place], place))
            among_themselves.setdefault(key, []).append(place)
    yield from among_themselves.values()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _mean(signs: Iterable[str]) -> str:
    parts = [0.0 if sign == "." else 1.0 if sign == "#" else int(sign) / 10 for sign in signs if sign not in "? "]
    return _shade(sum(parts) / len(parts)) if parts else "?"


def _shade(part: float) -> str:
    return "." if part == 0 else "#" if part == 1 else str(max(1, min(9, round(10 * part))))


def _sign(
    sources: Sequence[int],
    targets: Sequence[int],
    failed: Collection[tuple[int, int]],
    tried: Collection[tuple[int, int]] | None,
) -> str:
    # Groups are alike, so one source tells of all, but for itself where it is among the targets.
    source = sources[0]
    others = [target for target in targets if target != source]
    if tried is not None:
        asked = [target for target in others if (source, target) in tried or (source, target) in failed]
        if others and not asked:
            return "?"
        others = asked
    if not others:
        return " "
    return _shade(sum((source, target) in failed for target in others) / len(others))
