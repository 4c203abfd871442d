"""One thing that was looked at of a run, and what came of it."""

from dataclasses import dataclass
from typing import Literal

Result = Literal["ok", "wrong", "warning", "unknown"]

ALONE = "Start all nodes with the same --nnodes, --nproc-per-node and --master-addr; `allranks check` compares them"
"""What mends ranks that are not one run."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `said` in a sentence; for what is wrong `remedy` is the next action."""

    name: str
    result: Result
    said: str
    remedy: str = ""
    ranks: tuple[int, ...] = ()
