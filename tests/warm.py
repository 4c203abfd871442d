"""Processes that are forks of one that has imported what ranks import, and has done nothing else."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def warm_processes() -> ForkServerContext:
    """What it starts has imported this package's `imported_by_ranks` already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.imported_by_ranks"])
    return context
