"""The rank processes below a launcher, whatever it put in between."""

import contextlib

import psutil

# One run has one id on all nodes; the launcher of each node marks its own processes, for nodes may share a host.
RUN_ID = "ALLRANKS_RUN_ID"
LAUNCH_ID = "ALLRANKS_LAUNCH_ID"
_NUMBERS = ("RANK", "LOCAL_RANK")


def ranks_below(launcher_pid: int, launch_id: str) -> list[psutil.Process]:
    """The topmost descendants whose environment holds this launch's id and a rank's number.

    Only the topmost: what a rank starts (workers that load data, compilers) inherits its environment.
    """
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(launcher_pid).children(recursive=True)
    parents: dict[int, int] = {}
    ranks: dict[int, psutil.Process] = {}
    for process in family:
        with contextlib.suppress(psutil.Error, OSError):
            parents[process.pid] = process.ppid()
            env = process.environ()
            if env.get(LAUNCH_ID) == launch_id and any(name in env for name in _NUMBERS):
                ranks[process.pid] = process
    return [process for pid, process in ranks.items() if not _has_rank_above(pid, parents, ranks.keys())]


def kill_leftovers(launch_id: str, *, but: int) -> None:
    """Kill what a launcher left behind when it died before its ranks: processes that carry this launch's id."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != but and process.environ().get(LAUNCH_ID) == launch_id:
                process.kill()


def _has_rank_above(pid: int, parents: dict[int, int], ranks: object) -> bool:
    while (pid := parents.get(pid, 0)) in parents:
        if pid in ranks:  # type: ignore[operator]
            return True
    return False
