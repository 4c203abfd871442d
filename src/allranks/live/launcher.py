"""Whether the launcher that keeps a run's table is still there, as far as can be seen from the run's folder."""

from __future__ import annotations

import os
import socket
import time

from allranks.doctor.without_end import OLD_SECONDS, is_gone, last_written
from allranks.live.from_events import read_live
from allranks.observe import RunDir

_NEXT_SECONDS = 3.0  # the table says which process it is, and is written each second


def no_launcher(run: RunDir) -> str | None:
    """Why no launcher can be asked; None where one seems to be alive."""
    table = read_live(run)
    if table is None:
        why = f"{run.live} cannot be read" if os.path.lexists(run.live) else f"there is no live.json in {run.path}"
        return f"no launcher of this run can be asked: {why}"
    if table.ended is not None:
        return f"the run has ended with exit code {table.ended.exit_code}"
    first = table.nodes[0] if table.nodes else None
    where = f" on {first.host}" if first is not None and first.host else ""
    age = time.time() - last_written(run.live, table.t)
    if (
        first is not None
        and first.host == socket.gethostname()
        and age >= _NEXT_SECONDS
        and is_gone(first.launcher_pid)
    ):
        return f"the run's launcher{where} (pid {first.launcher_pid}) is gone"
    if age >= OLD_SECONDS:
        return f"the run's launcher{where} does not answer: it has written nothing for {age:,.0f} s"
    return None
