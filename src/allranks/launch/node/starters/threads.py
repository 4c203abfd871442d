"""How many threads a rank computes with."""

import os
from collections.abc import Mapping

from allranks.launch.spec.options import Launch


def thread_variables(launch: Launch, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """OMP_NUM_THREADS, unless the user has set it: the ranks of a node share its cores."""
    if "OMP_NUM_THREADS" in env:
        return {}
    # Launchers would set 1, which starves a CPU run and tokenisation; every rank taking all cores is worse.
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // launch.nproc_per_node))}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
