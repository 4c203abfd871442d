"""This node's cores, and how many of them a rank that computes on them has."""

from __future__ import annotations

import os
from collections.abc import Mapping


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_rank(num_ranks: int, env: Mapping[str, str] = os.environ) -> int:
    """What each of a node's ranks computes with: OMP_NUM_THREADS where the user has set it, else its part of the cores.

    What is no number OpenMP does not take for one, and uses all cores.
    """
    if (asked := env.get("OMP_NUM_THREADS")) is None:
        return max(1, usable_cores() // num_ranks)
    first = asked.partition(",")[0].strip()  # a list has a number for each level
    return int(first) if first.isdecimal() and int(first) else usable_cores()


def cores_of_rank(num_ranks: int, num_threads: int) -> float:
    """Cores that a rank's threads have, while all ranks of the node are at work."""
    return min(num_threads, usable_cores() / num_ranks)
