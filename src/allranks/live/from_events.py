"""The table of a run that nobody keeps one of, or that has ended: what the ranks' events on this disk say."""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from allranks.errors import AllranksError
from allranks.findings import Finding
from allranks.live.rank_progress import RankProgress
from allranks.live.state import LiveEnd, LiveTable, NodeState, RankState
from allranks.live.stragglers import Stragglers
from allranks.live.table import table_of_nodes
from allranks.observe import RunDir, read_events
from allranks.observe.event_lines import parse_event
from allranks.observe.events import Event, PhaseEvent

_LAST_BYTES = 2**18  # more than a thousand steps, of each rank
# A rank that is slow beside unknown programs has to be so for a minute, see stragglers.py.
_WATCHED_SECONDS = 180.0
_MAX_BYTES = 64 * 2**20  # of a live.json or a manifest


def table_of(run: RunDir) -> LiveTable:
    """What is known of the newest start of a run: the table that node 0 keeps, or what the ranks' events say.

    Raises FileNotFoundError where neither is there.
    """
    kept = read_live(run)
    started = _newest_start(run)
    if kept is not None and started in (None, kept.run_id):
        return kept
    events = sorted((event for path in run.all_events() for event in _newest_events(path, started)), key=_time)
    if not events:
        if kept is not None:
            return kept
        raise FileNotFoundError(f"{run.path} has no live.json and no events of a rank")
    now = time.time()
    known = _nodes_of_ranks(run)
    nodes = {rank: known.get(rank, 0) for rank in {event.rank for event in events}}
    hosts = {node: _host(run, node) for node in set(nodes.values())}
    progress = {rank: RankProgress(rank) for rank in sorted(nodes)}
    stragglers = Stragglers()
    for t, of_a_second in _by_seconds(events):
        for event in of_a_second:
            progress[event.rank].read([event])
        if t > events[-1].t - _WATCHED_SECONDS:
            # Nobody knows what else the nodes' cores did: it is taken that other programs have them, too.
            states = [replace(one, idle_cpu=0.0, other_cpu_use=1.0) for one in _states(progress, nodes, hosts, t)]
            stragglers.read(table_of_nodes(started or "", t, states))
    codes = [one.state.exit_code for one in progress.values()]
    ended = None
    if all(code is not None for code in codes):
        ended = LiveEnd(exit_code=max((code or 0 for code in codes), key=abs))
    if ended is not None:  # all is as it was then
        now = events[-1].t
    table = table_of_nodes(started or "", now, _states(progress, nodes, hosts, now), ended=ended)
    if ended is not None:
        return table
    return replace(table, stragglers=stragglers.found, overdue=_behind(run, table, now))


def _behind(run: RunDir, table: LiveTable, now: float) -> tuple[Finding, ...]:
    """Who is behind all others for longer than it may be; of others nobody knows here whether they still run."""
    from allranks.config import RunConfig
    from allranks.live.deadlines import Limits, limits_of, overdue

    limits = Limits()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, AllranksError):
        config = json.loads(run.manifest.read_text(encoding="utf-8", errors="replace"))["config"]
        limits = limits_of(RunConfig.from_resolved(config, source=str(run.manifest)))
    return tuple(one for one in overdue(table, limits, now) if one.who.rank is not None)


def _states(
    progress: Mapping[int, RankProgress], nodes: Mapping[int, int | str], hosts: Mapping[int | str, str], now: float
) -> list[NodeState]:
    """What the nodes' launchers would say of their ranks."""
    ranks: dict[int | str, list[RankState]] = {}
    for rank, known in progress.items():
        age = None if known.newest is None else max(0.0, now - known.newest)
        ranks.setdefault(nodes[rank], []).append(replace(known.state, events_age_seconds=age))
    return [NodeState(node=node, host=hosts[node], t=now, ranks=tuple(of)) for node, of in ranks.items()]


def _by_seconds(events: Sequence[Event]) -> Iterator[tuple[float, list[Event]]]:
    """Events by time, those of a second together, as a launcher comes to read them."""
    for second, of_it in itertools.groupby(events, key=lambda event: int(event.t)):
        yield float(second + 1), list(of_it)


def _time(event: Event) -> float:
    return event.t


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
        return str(json.loads(run.started(node).read_text())["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return node if isinstance(node, str) else ""
