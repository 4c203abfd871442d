"""A run as somebody sees it who looks from outside: its table, how old that is, and where more of it is known."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allranks.doctor.without_end import OLD_SECONDS, is_gone, last_written
from allranks.errors import UsageError
from allranks.live.from_events import read_live, table_of
from allranks.live.state import VERSION, LiveTable
from allranks.observe import RunDir

_ADDRESS = ("--master-addr", "--master_addr", "--rdzv-endpoint", "--rdzv_endpoint", "--main_process_ip")
_MAX_LAUNCH_BYTES = 2**22


@dataclass(frozen=True)
class Look:
    """`age_seconds`: since anything of the run was written last; None where it has ended. `notes` are for the user."""

    table: LiveTable
    age_seconds: float | None = None
    notes: Sequence[str] = ()

    def to_message(self) -> dict[str, Any]:
        """Plain JSON: the table's fields, and these two."""
        return {**self.table.to_message(), "age_seconds": self.age_seconds, "notes": list(self.notes)}


def look(run: RunDir) -> Look:
    """What can be seen of a run from here. Raises UsageError where there is nothing of one, and says where it is."""
    if not run.path.is_dir():
        raise UsageError(
            f"{run.path} is no folder on this node: name the run's output_dir, on a node whose disk has it"
        )
    notes = _damage(run)
    try:
        table = table_of(run)
    except FileNotFoundError:
        why = "; ".join([*notes, *_elsewhere(run)]) or "no rank has started here, or it is not a run's output_dir"
        raise UsageError(f"{run.path}: nothing to show of a run: {why}") from None
    now = time.time()
    kept = read_live(run)
    is_kept = kept is not None and kept.run_id == table.run_id
    if not is_kept:
        notes += [*_elsewhere(run), "no table is kept of this start: this is what the events of the ranks here say"]
    elif table.version > VERSION:
        notes.append(
            f"live.json is of version {table.version}, and this allranks knows version {VERSION}: what is new in it is "
            "not shown; look with the allranks that the run was started with"
        )
    if table.ended is not None:
        return Look(table, None, notes)
    if is_kept:
        age = max(0.0, now - last_written(run.live, table.t))
        if age >= OLD_SECONDS:
            notes.append(f"nothing was written for {age:,.0f} s, since {_at(now - age)}: {_who_should_write(table)}")
        return Look(table, age, notes)
    ages = [rank.events_age_seconds for rank in table.ranks if rank.events_age_seconds is not None]
    if not ages:
        return Look(table, None, notes)
    if min(ages) >= OLD_SECONDS:
        notes.append(f"no rank has written an event for {min(ages):,.0f} s, since {_at(now - min(ages))}")
    return Look(table, min(ages), notes)


def _damage(run: RunDir) -> list[str]:
    try:
        mode = run.live.stat().st_mode
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"live.json cannot be read: {error.strerror}"]
    if not stat.S_ISREG(mode):
        return ["live.json is no file"]
    if not os.access(run.live, os.R_OK):
        return ["live.json cannot be read: no permission"]
    return [] if read_live(run) is not None else ["live.json is damaged, or no table of a run"]


def _who_should_write(table: LiveTable) -> str:
    first = table.nodes[0] if table.nodes else None
    if first is None:
        return "the run's launcher writes it while it goes on"
    where = f"on {first.host}" if first.host else f"of node {first.node}"
    if first.launcher_pid is not None and first.launcher_pid > 0 and first.host == socket.gethostname():
        if is_gone(first.launcher_pid):
            return f"its launcher {where} (pid {first.launcher_pid}) is gone, and did not say how the run ended"
        return f"its launcher {where} (pid {first.launcher_pid}) is there; see whether the disk takes writes"
    return f"its launcher {where} was killed, or its disk or machine does not answer; look there"


def _elsewhere(run: RunDir) -> list[str]:
    """Which node has the table, where the files here are those of other nodes."""
    here = sorted(path.name.removeprefix("node-") for path in run.path.glob("logs/node-*") if path.is_dir())
    if not here or "0" in here:
        return []
    addresses = [address for name in here[:4] if (address := _first_node(run, name))]
    where = f" ({addresses[0]})" if addresses else ""
    return [
        f"this disk has only what node {', '.join(here[:4])} wrote: node 0{where} has the table of all; ask there"
        if all(name.isdigit() for name in here)
        else f"this disk has only what {', '.join(here[:4])} wrote; the node that leads{where} has the table of all"
    ]


def _first_node(run: RunDir, node: str) -> str:
    """The address of node 0 in the command that started this node's ranks."""
    path = run.started(node)
    try:
        if not path.is_file() or path.stat().st_size > _MAX_LAUNCH_BYTES:
            return ""
        words = [str(word) for word in json.loads(path.read_text(encoding="utf-8", errors="replace"))["command"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    for index, word in enumerate(words):
        name, is_joined, value = word.partition("=")
        if name in _ADDRESS:
            return value if is_joined else words[index + 1] if index + 1 < len(words) else ""
    return ""


def _at(t: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(t))
