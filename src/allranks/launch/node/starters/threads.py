"""How many threads a rank computes with."""

import os
from collections.abc import Mapping

from allranks.cluster.cores import threads_of_rank
from allranks.launch.spec.options import Launch


def thread_variables(launch: Launch, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """OMP_NUM_THREADS, unless the user has set it: the ranks of a node share its cores."""
    if "OMP_NUM_THREADS" in env:
        return {}
    # Launchers would set 1, which starves a CPU run and tokenisation; every rank taking all cores is worse.
    return {"OMP_NUM_THREADS": str(threads_of_rank(launch.nproc_per_node, env))}
