"""The table of a run that nobody keeps one of, or that has ended: what the ranks' events on this disk say."""

from __future__ import annotations

import json
import mmap
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from allranks.live.rank_progress import RankProgress
from allranks.live.state import LiveEnd, LiveTable, NodeState, RankState
from allranks.live.table import table_of_nodes
from allranks.observe import RunDir, read_events
from allranks.observe.event_lines import parse_event
from allranks.observe.events import Event, PhaseEvent

_LAST_BYTES = 2**18  # more than a thousand steps, of each rank
_MAX_BYTES = 64 * 2**20  # of a live.json or a manifest


def table_of(run: RunDir) -> LiveTable:
    """What is known of the newest start of a run: the table that node 0 keeps, or what the ranks' events say.

    Raises FileNotFoundError where neither is there.
    """
    kept = read_live(run)
    started = _newest_start(run)
    if kept is not None and started in (None, kept.run_id):
        return kept
    files = [(path, _newest_events(path, started)) for path in run.all_events()]
    progress: dict[int, RankProgress] = {}
    for _, events in files:
        for event in events:
            progress.setdefault(event.rank, RankProgress(event.rank)).read([event])
    if not progress:
        if kept is not None:
            return kept
        raise FileNotFoundError(f"{run.path} has no live.json and no events of a rank")
    now = time.time()
    nodes: dict[int | str, list[RankState]] = {}
    hosts = _nodes_of_ranks(run)
    for rank, known in sorted(progress.items()):
        age = None if known.newest is None else max(0.0, now - known.newest)
        nodes.setdefault(hosts.get(rank, 0), []).append(replace(known.state, events_age_seconds=age))
    states = [NodeState(node=node, host=_host(run, node), t=now, ranks=tuple(of)) for node, of in nodes.items()]
    codes = [rank.exit_code for of in nodes.values() for rank in of]
    ended = None
    if all(code is not None for code in codes):
        ended = LiveEnd(exit_code=max((code or 0 for code in codes), key=abs))
    return table_of_nodes(started or "", now, states, ended=ended)


def read_live(run: RunDir) -> LiveTable | None:
    """What node 0 wrote last; None where there is none, or none that can be read."""
    try:
        state = run.live.stat()
        if state.st_size > _MAX_BYTES or not stat.S_ISREG(state.st_mode):  # a FIFO would be waited for
            return None
        return LiveTable.from_message(json.loads(run.live.read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError, RecursionError):
        return None


def _newest_start(run: RunDir) -> str | None:
    """The run id that the newest event of a rank has."""
    newest: tuple[float, str] | None = None
    for path in run.all_events():
        last = [event for event in read_events(path, last_bytes=2**14) if event.run is not None]
        if last and last[-1].run is not None:
            newest = max(newest or (0.0, ""), (last[-1].t, last[-1].run))
    return newest[1] if newest else None


def _newest_events(path: Path, run_id: str | None) -> Iterator[Event]:
    """The last events of a start, and before them that of its training's begin, however long ago that was."""
    last = [event for event in read_events(path, last_bytes=_LAST_BYTES) if event.run == run_id]
    is_begin = [isinstance(event, PhaseEvent) and event.num_steps is not None for event in last]
    if not any(is_begin) and (begin := _last_begin(path)) is not None and begin.run == run_id:
        yield begin
    yield from last


def _last_begin(path: Path) -> Event | None:
    """The newest event with which training began. Files of hundreds of megabytes are searched, and not parsed."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.rfind(b'"phase":"train"')
            if at < 0:
                return None
            start, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at)
            return parse_event(content[start : end if end >= 0 else len(content)])
    except (OSError, ValueError):  # an empty file cannot be mapped
        return None


def _nodes_of_ranks(run: RunDir) -> dict[int, int | str]:
    """The node of each rank, by where its log is."""
    found: dict[int, int | str] = {}
    for log in sorted(run.path.glob("logs/node-*/rank-*.log")):
        name, rank = log.parent.name.removeprefix("node-"), log.stem.removeprefix("rank-")
        if rank.isdigit():
            found[int(rank)] = int(name) if name.isdigit() else name
    return found


def _host(run: RunDir, node: int | str) -> str:
    try:
        return str(json.loads((run.logs(node) / "launch.json").read_text())["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return node if isinstance(node, str) else ""
