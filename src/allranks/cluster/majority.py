"""Which nodes have the same, and which deviate from most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Groups(Generic[_T]):
    """Values, each with the nodes that have it: the largest group first, among equals the one that came first."""

    of: tuple[tuple[_T, tuple[str, ...]], ...]

    @property
    def majority(self) -> _T | None:
        """What more than half of the nodes have; None where no value has as many, as with two nodes that differ."""
        if not self.of:
            return None
        value, nodes = self.of[0]
        return value if 2 * len(nodes) > sum(len(each) for _, each in self.of) else None


def groups(values: Iterable[tuple[str, _T]]) -> Groups[_T]:
    """The nodes of (node, value) by their value, which must be hashable."""
    holders: dict[_T, list[str]] = {}
    for node, value in values:
        holders.setdefault(value, []).append(node)
    by_number = sorted(holders.items(), key=lambda item: -len(item[1]))
    return Groups(tuple((value, tuple(nodes)) for value, nodes in by_number))
