"""What a part of the acceptance run is given, what it says, and when it cannot be run."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """One part: `module` has a function `run(place)` that yields `Row`s, and is imported in a process of its own.

    `needs`: "cuda", and packages by the names that they are imported by. `seconds`: after which it is killed.
    `is_alone`: it measures, so nothing else runs beside it. `argument`: handed on in its place, where several parts
    share a module. `is_usual`: runs without being asked for by name.
    """

    name: str
    about: str
    module: str
    seconds: float
    needs: tuple[str, ...] = ()
    is_alone: bool = False
    argument: str = ""
    is_usual: bool = True

    def lack(self, device: str) -> str | None:
        """Why it cannot run on `device` (cpu or cuda) with the packages that are installed; None if it can."""
        for need in self.needs:
            if need == "cuda" and device != "cuda":
                return "needs a CUDA device, and this run is on the CPU"
            if need != "cuda" and not is_installed(need):
                return f"needs the package {need}, which is not installed"
        return None


@dataclass(frozen=True)
class Place:
    """Where a part runs. `shared` outlives it and is seen by all parts, `scratch` is its own; both are there."""

    device: str
    scratch: Path
    shared: Path
    argument: str = ""


@dataclass(frozen=True)
class Row:
    """One thing that was tried. `ok`: whether it is as `expected`; None for a figure of which nothing is expected, and
    for what could not be tried, as `measured` then says. `values`: the same for programs."""

    what: str
    measured: str
    expected: str = ""
    ok: bool | None = None
    values: dict[str, float | str | None] = field(default_factory=dict)


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def not_tried(what: str, reason: object) -> Row:
    """What cannot be tried here: `reason` in one line."""
    return Row(what, f"not tried: {' '.join(str(reason).split())[:300]}")


def agreement(what: str, found: Sequence[float], wanted: Sequence[float], tolerance: float) -> Row:
    """Losses (or other numbers) beside those that they should be: the largest difference, as a share of each."""
    same_number = len(found) == len(wanted) and bool(found)
    apart = max((_apart(a, b) for a, b in zip(found, wanted, strict=False)), default=math.inf)
    measured = f"{found[0]:.6g} to {found[-1]:.6g}, off by {apart:.1e}" if same_number else f"{len(found)} numbers"
    expected = f"{wanted[0]:.6g} to {wanted[-1]:.6g}, within {tolerance:.0e}"
    return Row(what, measured, expected, same_number and apart <= tolerance, {"apart": apart})


def _apart(found: float, wanted: float) -> float:
    if not (math.isfinite(found) and math.isfinite(wanted)):
        return math.inf
    return abs(found - wanted) / max(abs(wanted), 1e-12)
