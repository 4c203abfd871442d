"""What came of the checks: a value that node 0 makes, and that every node shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from allranks.findings import Finding, from_message
from allranks.listing import printable
from allranks.preflight.folding import natural
from allranks.preflight.matrix import Matrix

State = Literal["failed", "warned", "noted", "accepted", "unknown", "skipped", "ok"]
STATES: tuple[State, ...] = get_args(State)
"""The worst first."""
VERSION = 1
_LONGEST_NAME, _LONGEST_REASON = 256, 1000
_MOST_REASONS, _MOST_FINDINGS, _MOST_NODES, _MOST_TRANSPORTS = 64, 10_000, 65_536, 64


@dataclass(frozen=True)
class Checked:
    """One check: its nodes by their state, the worst first, and why some were skipped or are not known."""

    id: str
    nodes: Mapping[State, tuple[str, ...]]
    reasons: tuple[tuple[State, str], ...] = ()


@dataclass(frozen=True)
class Reported:
    """A finding, the nodes that it is about, and what it counts as."""

    finding: Finding
    nodes: tuple[str, ...]
    state: State


@dataclass(frozen=True)
class Judgement:
    """What was checked on which nodes, and what was found: `reported` has the worst first."""

    nodes: tuple[str, ...]
    starting: str
    checked: tuple[Checked, ...]
    reported: tuple[Reported, ...]
    matrix: Matrix | None = None
    """Who did not reach whom; None where all did, or nobody tried."""
    rates: Matrix | None = None
    """What each link carries; None where none carries much less than most, or nothing was measured."""
    transports: Mapping[str, Matrix] = field(default_factory=dict)
    """The same over what else joins the nodes, by its name."""

    @property
    def is_refused(self) -> bool:
        """Whether the run should not start."""
        return any(one.state == "failed" for one in self.reported)

    @cached_property
    def failing(self) -> tuple[str, ...]:
        """The nodes with which it should not: where two differ and none is to blame more, both."""
        named = {node for one in self.reported if one.state == "failed" for node in one.nodes}
        return tuple(node for node in self.nodes if node in named)

    @cached_property
    def passing(self) -> tuple[str, ...]:
        failing = set(self.failing)
        return tuple(node for node in self.nodes if node not in failing)

    def findings(self, *states: State) -> list[Finding]:
        """Those that count as one of these, or all."""
        return [one.finding for one in self.reported if not states or one.state in states]

    def to_message(self) -> dict[str, Any]:
        """Plain JSON types, for preflight.json, --json and the other nodes.

        Of each check, the nodes are named that are not in the state of most, which is its `state`.
        """
        return {
            "version": VERSION,
            "refused": self.is_refused,
            "nodes": list(self.nodes),
            "starting": self.starting,
            "passing": list(self.passing),
            "failing": list(self.failing),
            "findings": [
                {**one.finding.to_message(), "nodes": list(one.nodes), "state": one.state} for one in self.reported
            ],
            "checks": [_checked_message(one) for one in self.checked],
            "matrix": self.matrix.to_message() if self.matrix else None,
            "rates": self.rates.to_message() if self.rates else None,
            "transports": {name: one.to_message() for name, one in self.transports.items()},
        }

    @classmethod
    def from_message(cls, message: object) -> Judgement:
        """The judgement that any version wrote. Raises ValueError for what is none; this may come from the wire."""
        if not isinstance(message, Mapping):
            raise ValueError("a judgement is a table")
        nodes = _names(message.get("nodes"))
        if not nodes:
            raise ValueError("a judgement names its nodes")
        known = frozenset(nodes)
        reported = []
        for told in _list(message.get("findings"))[:_MOST_FINDINGS]:
            finding = from_message(told)
            if finding is not None and (state := _state(told.get("state"))) is not None:
                reported.append(Reported(finding, tuple(n for n in _names(told.get("nodes")) if n in known), state))
        checked = [
            one for told in _list(message.get("checks")) if isinstance(told, Mapping) and (one := _read(told, nodes))
        ]
        return cls(
            nodes,
            _name(message.get("starting")),
            tuple(checked),
            tuple(reported),
            Matrix.from_message(message.get("matrix")),
            Matrix.from_message(message.get("rates")),
            _transports(message.get("transports")),
        )


def _checked_message(one: Checked) -> dict[str, Any]:
    most = max(one.nodes, key=lambda state: len(one.nodes[state]), default="ok")
    return {
        "id": one.id,
        "state": most,
        "but": {state: list(nodes) for state, nodes in one.nodes.items() if state != most},
        "reasons": [[state, text[:_LONGEST_REASON]] for state, text in one.reasons[:_MOST_REASONS]],
    }


def _read(told: Mapping[str, Any], nodes: Sequence[str]) -> Checked | None:
    most, but = _state(told.get("state")), told.get("but")
    if most is None or not isinstance(but, Mapping):
        return None
    of = dict.fromkeys(nodes, most)
    for name, some in but.items():
        if (state := _state(name)) is not None:
            of.update({node: state for node in _names(some) if node in of})
    by_state: dict[State, list[str]] = {state: [] for state in STATES}
    for node, state in of.items():
        by_state[state].append(node)
    reasons = [
        (state, printable(one[1], _LONGEST_REASON))
        for one in _list(told.get("reasons"))[:_MOST_REASONS]
        if isinstance(one, list) and len(one) == 2 and (state := _state(one[0])) is not None
    ]
    found = {state: tuple(some) for state, some in by_state.items() if some}
    return Checked(_name(told.get("id")), found, tuple(reasons))


def _transports(told: object) -> dict[str, Matrix]:
    of = list(told.items())[:_MOST_TRANSPORTS] if isinstance(told, Mapping) else []
    read = {_name(name): Matrix.from_message(one) for name, one in of}
    return {name: one for name, one in read.items() if one is not None}


def _state(value: object) -> State | None:
    return next((state for state in STATES if state == value), None)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _name(value: object) -> str:
    return printable(value, _LONGEST_NAME) if isinstance(value, str) else ""


def _names(value: object) -> tuple[str, ...]:
    names: Iterable[str] = (_name(one) for one in _list(value)[:_MOST_NODES])
    return tuple(sorted({name for name in names if name}, key=natural))
