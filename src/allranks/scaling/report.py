"""A scaling as a table for people, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from allranks.exit_codes import DONE
from allranks.listing import si_bytes
from allranks.scaling.efficiency import Scaled
from allranks.scaling.measured import Measured
from allranks.scaling.picture import bars

_SLOW = 1.1
"""Times the usual step that the mean of all has to be, before it is worth a line."""
_FEW_STEPS = 10


@dataclass(frozen=True)
class Outcome:
    """What came of one size: it was measured, or it failed with `exit_code` and `error`."""

    nodes: int
    measured: Measured | None = None
    error: str = ""
    exit_code: int = DONE

    def to_message(self) -> dict[str, Any]:
        """Plain JSON."""
        told = self.measured.to_message() if self.measured else {"nodes": self.nodes}
        return {**told, "ok": self.measured is not None, "error": self.error or None, "exit_code": self.exit_code}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Outcome:
        """Raises ValueError for what is none."""
        nodes, code = message.get("nodes"), message.get("exit_code")
        if not isinstance(nodes, int) or not isinstance(code, int):
            raise ValueError("it does not say how many nodes there were, and how it ended")
        if not message.get("ok"):
            return cls(nodes, None, str(message.get("error") or ""), code)
        return cls(nodes, Measured.from_message(message), "", code)


@dataclass(frozen=True)
class Scaling:
    """All that is told. `outcomes` from the smallest size on; `scaled` those that were measured. `plan`: by what it
    was planned, or why it was not."""

    config: str
    strategy: str
    keep_batch: bool
    warm_up: int
    outcomes: Sequence[Outcome]
    scaled: Sequence[Scaled]
    plan: str

    @property
    def exit_code(self) -> int:
        return next((one.exit_code for one in self.outcomes if one.exit_code != DONE), DONE)

    def to_message(self) -> dict[str, Any]:
        """Plain JSON."""
        by_nodes = {one.measured.nodes: one for one in self.scaled}
        return {
            "config": self.config,
            "strategy": self.strategy,
            "scaling": "strong" if self.keep_batch else "weak",
            "warm_up_steps": self.warm_up,
            "plan": self.plan,
            "exit_code": self.exit_code,
            "sizes": [one.to_message() | _numbers(by_nodes.get(one.nodes)) for one in self.outcomes],
        }


def _numbers(one: Scaled | None) -> dict[str, Any]:
    if one is None:
        return {}
    return {
        "tokens_per_second": one.measured.tokens_per_second,
        "speedup": one.speedup,
        "efficiency": one.efficiency,
        "planned_efficiency": one.planned_efficiency,
        **{f"lost_to_{part}": value for part, value in asdict(one.lost).items()},
    }


def as_csv(scaling: Scaling) -> str:
    """A row a size, those that failed with empty cells."""
    rows = [{key: value for key, value in one.items() if key != "error"} for one in scaling.to_message()["sizes"]]
    names = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_text(scaling: Scaling, *, width: int = 80, ascii_only: bool = False) -> str:
    """The tables, the picture, and what is to be said of single sizes."""
    lines: list[str] = []
    if scaling.scaled:
        lines += ["", *_table(_SPEED, scaling.scaled)]
    if len(scaling.scaled) > 1:
        lines += ["", "lost, in points of efficiency, to:", *_table(_LOSS, scaling.scaled[1:])]
        lines += ["", *bars(scaling.scaled, width=min(width, 100), ascii_only=ascii_only).splitlines()]
    said = [f"plan: {scaling.plan}"] if scaling.plan else []
    said += _remarks(scaling)
    failed = [one for one in scaling.outcomes if one.measured is None]
    said += [f"failed on {_nodes(one.nodes)} (exit code {one.exit_code}): {one.error}" for one in failed]
    lines += ["", *said] if said else []
    return "\n".join(lines)


def _remarks(scaling: Scaling) -> list[str]:
    lines = []
    for one in (scaled.measured for scaled in scaling.scaled):
        if one.all_seconds > _SLOW * one.seconds:
            lines.append(
                f"on {_nodes(one.nodes)} some steps were slow: the mean of all is {one.all_seconds:.3g} s, the longest "
                f"took {one.slowest:.3g} s"
            )
        if one.steps < _FEW_STEPS:
            counted = f"{one.steps} steps count" if one.steps > 1 else "one step counts"
            lines.append(f"on {_nodes(one.nodes)} only {counted}: more (--steps) would say more")
    if any(scaled.lost.compute is None for scaled in scaling.scaled[1:]):
        lines.append("the ranks' own work is not known (compiled layers): compute is part of communication above")
    elif any(scaled.measured.on_gpu for scaled in scaling.scaled[1:]):
        lines.append("compute and stragglers are reckoned from the layers' forward passes, which are all that is timed")
    return lines


_Cell = Callable[[Scaled], str]


def _points(value: float | None) -> str:
    return "?" if value is None else f"{100 * value + 0.0:.1f}".replace("-0.0", "0.0")


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.0f} %"


_SPEED: Mapping[str, _Cell] = {
    "nodes": lambda one: str(one.measured.nodes),
    "ranks": lambda one: str(one.measured.ranks),
    "tokens/s": lambda one: f"{one.measured.tokens_per_second:,.0f}",
    "s a step": lambda one: f"{one.measured.seconds:.3g}",
    "speed-up": lambda one: f"{one.speedup:.2f}",
    "efficiency": lambda one: _percent(one.efficiency),
    "plan": lambda one: _percent(one.planned_efficiency),
}
_LOSS: Mapping[str, _Cell] = {
    "nodes": _SPEED["nodes"],
    "compute": lambda one: _points(one.lost.compute),
    "communication": lambda one: _points(one.lost.communication),
    "data": lambda one: _points(one.lost.data),
    "stragglers": lambda one: _points(one.lost.stragglers),
    "a node sends": lambda one: (
        "?" if one.measured.node_sends_bytes is None else f"{si_bytes(one.measured.node_sends_bytes)} a step"
    ),
}


def _table(columns: Mapping[str, _Cell], rows: Sequence[Scaled]) -> list[str]:
    cells = {name: [name, *map(cell, rows)] for name, cell in columns.items()}
    wide = {name: max(map(len, of)) for name, of in cells.items()}
    return [
        "  ".join(cells[name][number].rjust(wide[name]) for name in columns).rstrip() for number in range(len(rows) + 1)
    ]


def _nodes(number: int) -> str:
    return f"{number} node{'s' if number > 1 else ''}"
