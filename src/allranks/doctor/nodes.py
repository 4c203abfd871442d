"""What happened to a whole node, as findings."""

from __future__ import annotations

from allranks.doctor import causes
from allranks.findings import Finding, Who


def node_lost(node: int | str, host: str, what: str, known_at: int | str) -> Finding:
    """A node that gave no sign of life, as `known_at` saw it."""
    return Finding(causes.NODE_LOST, what, who=Who(node, host=host), known_at=known_at)
