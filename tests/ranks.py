"""Run a function on several gloo ranks of this machine."""

import datetime
import faulthandler
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from tests.warm import warm_processes

# Collectives that do not meet would wait for half an hour.
_TIMEOUT = datetime.timedelta(seconds=150)


def run_ranks(function: Callable[..., None], *args: Any, num_ranks: int = 2) -> None:
    """Call `function(rank, *args)` in as many processes, with a process group; raises what one of them raises.

    The ranks meet through a file: a port that was free may be taken before it is used, and the rank that listens there
    may be gone before the others have said good-bye.
    """
    warm_processes()  # `start_processes` starts its own by the same server
    with tempfile.TemporaryDirectory() as folder:
        arguments = (function, Path(folder) / "store", num_ranks, dict(os.environ), args)
        mp.start_processes(_rank, arguments, nprocs=num_ranks, start_method="forkserver")


def _rank(
    rank: int, function: Callable[..., None], store: Path, num_ranks: int, env: dict[str, str], args: tuple[Any, ...]
) -> None:
    os.environ.clear()  # what the test has set since the first ranks were forked
    os.environ.update(env)
    faulthandler.enable()  # what a rank did that native code ends: a test that fails prints it
    method = f"file://{store}"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=num_ranks, timeout=_TIMEOUT)
    function(rank, *args)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may crash while the interpreter is taken down
