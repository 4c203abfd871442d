"""All that is predicted of a run, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allranks.plan.cost import RunCost
from allranks.plan.lengths import Lengths
from allranks.plan.over_nodes import OnNodes
from allranks.plan.remedies import Remedy
from allranks.plan.table import Machines, Row
from allranks.plan.workload import RankMemory


@dataclass(frozen=True)
class Traced:
    """The memory of a row beside what running the engine without values told of it; None and `why_not` where it
    cannot be run so."""

    row: Row
    memory: RankMemory | None
    why_not: str = ""


@dataclass(frozen=True)
class Plan:
    """`rows` are all, the best first; `lines` those of the config that select the best, `replaced` the keys of the
    user's file whose place they take. `cost`, `own_cost`: of the whole run with the best and with the config's own;
    None where the number of steps is not known. `remedies`: where the config's own does not fit. `assumptions` are
    sentences. `traced`: the best and the config's own, where that was asked for."""

    model: str
    machines: Machines
    lengths: Lengths
    rows: Sequence[Row]
    own: Row
    lines: Mapping[str, Any]
    replaced: Sequence[str]
    cost: RunCost | None
    own_cost: RunCost | None
    scaling: Sequence[OnNodes] = ()
    remedies: Sequence[Remedy] = ()
    assumptions: Sequence[str] = ()
    remarks: Sequence[str] = ()
    traced: Sequence[Traced] = ()

    @property
    def best(self) -> Row:
        return self.rows[0]
