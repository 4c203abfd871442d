"""A diagnosis: why a run failed, as a value from where it is made to where it is printed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from allranks.doctor.ruleset import HOPELESS, LIKELY, MAY_PASS, OTHER_NODE, SURE
from allranks.findings import Evidence

UNKNOWN = "unknown"
EXCEPTION = "exception"
"""The cause that no rule knows: an exception that nobody caught."""
_CHANGING = re.compile(r"0x[0-9a-fA-F]+|\d+(?:[.:,]\d+)*|(?<=/)[^\s'\":]*/")


@dataclass(frozen=True)
class Restart:
    """What a restart may do about it: `verdict` is hopeless, may-pass or other-node (without `node`, then).

    `fingerprint` is the same for the same failure, whatever its hosts, numbers and times; `step` the last that was
    logged before it.
    """

    verdict: str
    fingerprint: str
    step: int | None = None
    node: str | None = None


@dataclass(frozen=True)
class Explained:
    """What follows from the cause, and so is none: how often it was found, on which ranks, and where first."""

    id: str
    title: str
    num_lines: int
    ranks: tuple[int, ...]
    first: Evidence


@dataclass(frozen=True)
class Diagnosis:
    """`cause` is a rule's id, or `exception`; None for unknown, where `symptom` may say what is true without telling
    the cause. `certainty` is sure, likely or unknown. `notes`: what could not be read. `is_broad`: no rule knows what
    the logs say; it only speaks of this cause. `ended_well`: nothing failed."""

    cause: str | None
    title: str
    certainty: str
    meaning: str = ""
    remedy: str = ""
    not_proven: str = ""
    look_at: str = ""
    rank: int | None = None
    node: str | None = None
    evidence: tuple[Evidence, ...] = ()
    explained: tuple[Explained, ...] = ()
    symptom: str | None = None
    others: tuple[str, ...] = ()
    restart: Restart = Restart(MAY_PASS, "")
    notes: tuple[str, ...] = ()
    is_broad: bool = False
    ended_well: bool = False

    @property
    def is_known(self) -> bool:
        return self.cause is not None

    def to_message(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def fingerprint(cause: str, said: str, where: str = "") -> str:
    """What two failures of the same kind at the same place share; 16 hexadecimal digits."""
    text = "\0".join([cause, _CHANGING.sub("#", said)[:500], where])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def judged(now: Restart, before: Sequence[Restart]) -> Restart:
    """`now`, seen beside those of earlier attempts: the same failure at the same step twice is hopeless."""
    same = any(one.fingerprint == now.fingerprint and one.step == now.step for one in before if one.fingerprint)
    if not same or now.verdict == HOPELESS:
        return now
    return Restart(HOPELESS, now.fingerprint, now.step, now.node)


__all__ = [
    "EXCEPTION",
    "HOPELESS",
    "LIKELY",
    "MAY_PASS",
    "OTHER_NODE",
    "SURE",
    "UNKNOWN",
    "Diagnosis",
    "Explained",
    "Restart",
    "fingerprint",
    "judged",
]
