"""What is known of a run while it goes on: a table of nodes and their ranks, as values and as messages.

A node makes the state of its own ranks; it rides on the node's pulse to node 0, which keeps one table of all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from allranks.findings import Finding, from_message

VERSION = 1
"""Of the messages. A later one may have more fields, which are passed over."""
MAX_RANKS = 1024
"""Of one node, as far as another node may say."""
MAX_NODES = 4096
MAX_LINKS = 64
"""Of one node: those that carry most."""
_MAX_TEXT = 200
_MAX_FINDINGS = 64
_MAX_INT = 2**63

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What a rank does. All but its number may be None: not known. Of the newest step are loss and what is timed."""

    rank: int
    pid: int | None = None
    phase: str | None = None
    step: int | None = None
    """The last step done."""
    since: float | None = None
    """Unix time by the node's clock: phase or step was entered."""
    loss: float | None = None
    """None also where it is not a finite number."""
    tokens_per_second: float | None = None
    """Of all ranks together: a step's tokens are the global batch's."""
    step_seconds: float | None = None
    data_seconds: float | None = None
    """It waited for data."""
    compute_seconds: float | None = None
    """Of its own work, without what it waited in collectives for others."""
    wait_seconds: float | None = None
    """The rest of the step: it waited, for others or for data."""
    memory_bytes: int | None = None
    """Of its process, in the host's memory."""
    gpu_use: float | None = None
    """From 0 to 1."""
    gpu_memory_bytes: int | None = None
    cpu_use: float | None = None
    """Cores that its process has taken since the last look."""
    process_state: str | None = None
    """As proc(5) names it: R, S, D, T, t, Z; or `gone`."""
    output_age_seconds: float | None = None
    """Since it last wrote to its log, or since its process began."""
    output_bytes: int | None = None
    """That it has written to its log in this start of the run."""
    events_age_seconds: float | None = None
    """Since its last event."""
    exit_code: int | None = None
    num_steps: int | None = None
    """The run is to have."""
    median_step_seconds: float | None = None
    """Of the newest steps."""
    median_compute_seconds: float | None = None
    """Of its own work in the newest steps; None until there are enough."""
    low_compute_seconds: float | None = None
    """The same, that all but a fifth of the newest steps had at least."""
    mfu: float | None = None
    """Of all ranks together, from 0 to 1."""
    attempt: int | None = None
    """From 1; a launcher's restart is another one."""

    def to_message(self) -> dict[str, Any]:
        """Plain JSON; what is not known is left out."""
        return _plain(self)

    @classmethod
    def from_message(cls, message: object) -> RankState:
        """Raises ValueError for what is no state of a rank; passes over what is unknown or of another type."""
        values = _known(cls, message)
        if values.get("rank", -1) < 0:
            raise ValueError("the state of a rank has no rank")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class LinkState:
    """What a node's ranks have sent over TCP from its address `local` to `peer`, since it is watched."""

    local: str = ""
    peer: str = ""
    acked_bytes: int = 0
    carrying_seconds: float = 0.0
    """In which something of it was under way, of all its connections together."""
    num_segments: int = 0
    num_retransmits: int = 0
    """Of the segments: they were sent again."""

    @classmethod
    def from_message(cls, message: object) -> LinkState:
        """Raises ValueError for what is no state of a link."""
        return cls(**_known(cls, message))


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """A node and its ranks, at the time `t` of its own clock. `node`: its rank, or its host where ranks are dealt."""

    node: int | str
    host: str = ""
    t: float = 0.0
    ranks: tuple[RankState, ...] = ()
    bytes_in: float | None = None
    """A second, over the interfaces that the ranks really use."""
    bytes_out: float | None = None
    idle_cpu: float | None = None
    """Cores that nothing has used since the last look."""
    other_cpu_use: float | None = None
    """Cores that other programs than its ranks have taken since then."""
    launcher_pid: int | None = None
    warnings: tuple[str, ...] = ()
    links: tuple[LinkState, ...] = ()

    def to_message(self) -> dict[str, Any]:
        """Plain JSON."""
        told = {**_plain(self), "ranks": [one.to_message() for one in self.ranks], "warnings": list(self.warnings)}
        return {**told, "links": [_plain(one) for one in self.links]} if self.links else told

    @classmethod
    def from_message(cls, message: object) -> NodeState:
        """Raises ValueError for what is no state of a node. Ranks that are none are left out."""
        values = _known(cls, message, but=("ranks", "warnings", "links", "node"))
        assert isinstance(message, Mapping)
        if (node := _name(message.get("node"))) is None:
            raise ValueError("the state of a node does not say which")
        warnings = (_converted(one, (str,)) for one in _items(message, "warnings", _MAX_FINDINGS))
        return cls(
            node=node,
            ranks=tuple(_each(RankState.from_message, _items(message, "ranks", MAX_RANKS))),
            warnings=tuple(one for one in warnings if one),
            links=tuple(_each(LinkState.from_message, _items(message, "links", MAX_LINKS))),
            **values,
        )


@dataclass(frozen=True, kw_only=True)
class LiveEnd:
    """How a run ended."""

    exit_code: int
    finding: Finding | None = None


@dataclass(frozen=True, kw_only=True)
class LiveTable:
    """All nodes of a run at the time `t` of node 0's clock, and what is to be said of the whole."""

    version: int = VERSION
    """Of what wrote the table: what a newer one says, and this one does not know, is left out."""
    run_id: str = ""
    t: float = 0.0
    nodes: tuple[NodeState, ...] = ()
    step: int | None = None
    """The last step that all ranks have done."""
    num_steps: int | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    """From 0 to 1; None where the devices' peak is not known."""
    eta_seconds: float | None = None
    loss: float | None = None
    attempt: int | None = None
    """From 1; a restart is another one."""
    stragglers: tuple[Finding, ...] = ()
    overdue: tuple[Finding, ...] = ()
    ended: LiveEnd | None = None

    def to_message(self) -> dict[str, Any]:
        """Plain JSON."""
        ended = self.ended
        return {
            **_plain(self),
            "nodes": [one.to_message() for one in self.nodes],
            "stragglers": [one.to_message() for one in self.stragglers[:_MAX_FINDINGS]],
            "overdue": [one.to_message() for one in self.overdue[:_MAX_FINDINGS]],
            "ended": ended
            and {"exit_code": ended.exit_code, "finding": ended.finding.to_message() if ended.finding else None},
        }

    @classmethod
    def from_message(cls, message: object) -> LiveTable:
        """Raises ValueError for what is no table. What is unknown or of another type is passed over."""
        values = _known(cls, message, but=("nodes", "stragglers", "overdue", "ended"))
        assert isinstance(message, Mapping)
        if not isinstance(message.get("nodes"), list):
            raise ValueError("it has no nodes")
        return cls(
            nodes=tuple(_each(NodeState.from_message, _items(message, "nodes", MAX_NODES))),
            stragglers=_findings(message, "stragglers"),
            overdue=_findings(message, "overdue"),
            ended=_end(message.get("ended")),
            **values,
        )

    @property
    def ranks(self) -> list[RankState]:
        """Of all nodes, by rank."""
        return sorted((rank for node in self.nodes for rank in node.ranks), key=lambda one: one.rank)


def _end(message: object) -> LiveEnd | None:
    if not isinstance(message, Mapping) or (code := _converted(message.get("exit_code"), (int,))) is None:
        return None
    return LiveEnd(exit_code=code, finding=from_message(message.get("finding")))


def _findings(message: Mapping[str, Any], key: str) -> tuple[Finding, ...]:
    found = (from_message(one) for one in _items(message, key, _MAX_FINDINGS))
    return tuple(one for one in found if one is not None)


def _items(message: Mapping[str, Any], key: str, most: int) -> list[Any]:
    value = message.get(key)
    return value[:most] if isinstance(value, list) else []


def _each(read: Any, items: list[Any]) -> list[Any]:
    found = []
    for one in items:
        try:
            found.append(read(one))
        except ValueError:
            continue
    return found


def _plain(value: Any) -> dict[str, Any]:
    """The fields that hold one plain value each."""
    named = ((each.name, getattr(value, each.name)) for each in fields(value))
    return {name: one for name, one in named if isinstance(one, str | int | float) and _is_finite(one)}


def _is_finite(value: str | int | float) -> bool:
    """JSON has no numbers for others, and a reader that is not Python refuses the whole table."""
    return not isinstance(value, float) or math.isfinite(value)


def _known(cls: type, message: object, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain fields of `cls` that `message` has a value of their type for."""
    if not isinstance(message, Mapping):
        raise ValueError("it is no object")
    found = {}
    for name, kinds in _types(cls).items():
        if name not in but and (value := _converted(message.get(name), kinds)) is not None:
            found[name] = value
    return found


@functools.cache
def _types(cls: type) -> dict[str, tuple[type, ...]]:
    hints = get_type_hints(cls)
    return {
        each.name: tuple(one for one in get_args(hints[each.name]) or (hints[each.name],) if one is not NoneType)
        for each in fields(cls)
    }


def _name(value: object) -> int | str | None:
    number = _converted(value, (int,))
    return number if number is not None else _converted(value, (str,)) or None


def _converted(value: object, kinds: tuple[type, ...]) -> Any:
    """`value` as the first of `kinds` that it is, bounded; None for what is none."""
    if isinstance(value, bool):
        return None
    if str in kinds and isinstance(value, str):
        return "".join(char if char.isprintable() else " " for char in value[:_MAX_TEXT])
    if int in kinds and isinstance(value, int):
        return value if abs(value) < _MAX_INT else None
    if float in kinds and isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return None
