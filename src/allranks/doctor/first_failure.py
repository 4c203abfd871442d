"""Who failed first. The one place that decides it."""

from __future__ import annotations

from collections.abc import Iterable

from allranks.doctor.causes import precedence
from allranks.findings import Finding


def first_failure(findings: Iterable[Finding]) -> Finding | None:
    """The one that the others follow from; `findings` come in the order in which they became known in one place.

    A cause goes before a consequence, whenever each was heard of; of equals the one that came first. What a node's
    clock says has no part in it: clocks of nodes differ by more than a failure takes to spread.
    """
    return min(findings, key=lambda finding: precedence(finding.code), default=None)


def goes_before(new: Finding, known: Finding | None) -> bool:
    """Whether `new`, which has just come, is what `known` follows from."""
    return known is None or first_failure([known, new]) is new
