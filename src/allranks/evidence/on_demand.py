"""What the ranks of a run do now, for somebody who asks from a terminal: those of all nodes, or of this machine."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from allranks.errors import AllranksError, UsageError
from allranks.evidence.collectives import analyse
from allranks.evidence.diagnose import frames_of, ranks_of, recording_of
from allranks.evidence.gather import VERSION, gather_node
from allranks.evidence.python_stacks import Frame, folded, named, own_frame
from allranks.evidence.requests import ask_launcher
from allranks.listing import few, printable
from allranks.observe import RunDir
from allranks.observe.rundir import has_a_record

_MANIFEST_BYTES = 16 * 2**20
_MOST_FRAMES = 25


def stacks_everywhere(run: Path, *, seconds: float, no_launcher: Callable[[], str | None]) -> dict[str, Any]:
    """`told_of` all nodes of a run, which its launcher asks; see `ask_launcher`.

    Raises UsageError for what is no run's folder, NoLauncher, and AllranksError where no node has a rank.
    """
    _refuse_none(run)
    answer = ask_launcher(run, seconds=seconds, no_launcher=no_launcher)
    told = told_of(answer["summaries"], answer["silent"])
    if not told["ranks"]:
        why = [f"{one} does not answer" for one in told["silent"]] + _problems(told)
        raise AllranksError(
            f"{run}: no rank of this run that may be looked at runs now: {few(why, 4) or 'none at all'}"
        )
    return told


def stacks_here(run: Path, *, seconds: float) -> dict[str, Any]:
    """`told_of` this machine's ranks of a run, which must not be told apart by node.

    Raises UsageError for what is no run's folder, and AllranksError where no rank of it runs here.
    """
    _refuse_none(run)
    run_id = _run_id(RunDir(run))
    how = {"name": "on-demand", "node": socket.gethostname(), "seconds": seconds, "keep": False}
    told = gather_node(run, run_id=run_id, **how)  # type: ignore[arg-type]
    if not told.get("ranks"):
        # A launcher of the user's own starts ranks without an id: they are known by where they write.
        other = gather_node(run, **how)  # type: ignore[arg-type]
        told = other if other.get("ranks") else told
    if not told.get("ranks"):
        raise AllranksError(_nobody(RunDir(run), told))
    return told_of([told])


def told_of(summaries: Sequence[Mapping[str, Any]], silent: Sequence[str] = ()) -> dict[str, Any]:
    """One message of what `gather_node` told on each node: `ranks` with their node and host, and of each node the rest;
    `silent` are the nodes that gave no answer."""
    nodes = [{key: value for key, value in one.items() if key != "ranks"} for one in summaries]
    return {
        "version": VERSION,
        "nodes": nodes,
        "ranks": list(ranks_of(summaries).values()),
        "silent": [printable(one, 200) for one in silent],
    }


def text_of(told: Mapping[str, Any], *, all_threads: bool = False) -> list[str]:
    """Lines for a terminal: ranks at the same place together, then who gave no answer and why."""
    ranks = {about["rank"]: about for about in told["ranks"]}
    frames = {rank: found for rank, about in ranks.items() if (found := frames_of(about))}
    lines = folded(frames, most_frames=_MOST_FRAMES)
    for rank, about in ranks.items():
        process = about.get("process")
        state = process.get("state") if isinstance(process, Mapping) else None
        if rank not in frames:
            where = process.get("wchan") if isinstance(process, Mapping) else None
            kernel = f"; in the kernel at {printable(where, 100)}" if where else ""
            why = printable(about.get("no_stacks") or "no answer in time", 300)
            host = f" ({printable(about['host'], 100)})" if isinstance(about.get("host"), str) else ""
            lines.append(f"{named([rank])}{host}: pid {about.get('pid')}, state {state or 'unknown'}{kernel}: {why}")
        if all_threads:
            lines += _other_threads(rank, about)
    lines += [f"{one}: no answer in time" for one in told["silent"]]
    for stall in analyse({rank: recording_of(about) for rank, about in ranks.items()}, _places(frames))[:1]:
        lines.append(f"at this moment: {'' if stall.sure else 'perhaps: '}{stall.what}")
    return lines


def _refuse_none(run: Path) -> None:
    if not run.is_dir():
        raise UsageError(f"{run}: no such folder; RUN is the run's output_dir")
    if not has_a_record(RunDir(run)):
        raise UsageError(f"{run} is no run's output_dir: it has no manifest.json, events, live.json or logs")


def _problems(told: Mapping[str, Any]) -> list[str]:
    lines = []
    for node in told["nodes"]:
        problems = node.get("problems")
        for why in list(problems.values())[:4] if isinstance(problems, Mapping) else []:
            lines.append(f"node {printable(node.get('node'), 100)}: {printable(why, 300)}")
    return lines


def _places(frames: Mapping[int, Sequence[Frame]]) -> dict[int, str]:
    return {rank: str(frame) for rank, found in frames.items() if (frame := own_frame(found))}


def _other_threads(rank: int, about: Mapping[str, Any]) -> list[str]:
    lines = []
    threads = about.get("threads")
    for thread in threads if isinstance(threads, list) else []:
        if isinstance(thread, Mapping) and not thread.get("trains") and thread.get("frames"):
            found = frames_of({"threads": [{**thread, "trains": True}]})
            lines.append(f"{named([rank])}, thread {printable(thread.get('name') or 'without a name', 40)}:")
            lines += [f"  {frame}" for frame in found[:_MOST_FRAMES]]
    return lines


def _run_id(run: RunDir) -> str:
    with contextlib.suppress(OSError, ValueError):
        with run.manifest.open("rb") as file:
            told = json.loads(file.read(_MANIFEST_BYTES))
        if isinstance(told, dict) and isinstance(told.get("run"), str):
            return str(told["run"])
    return ""


def _nobody(run: RunDir, told: Mapping[str, Any]) -> str:
    ended = None
    with contextlib.suppress(OSError, ValueError):
        with run.live.open("rb") as file:
            table = json.loads(file.read(_MANIFEST_BYTES))
        ended = table.get("ended") if isinstance(table, dict) else None
    host = socket.gethostname()
    if isinstance(ended, Mapping):
        return f"{run.path}: the run has ended with exit code {ended.get('exit_code')}; no rank of it runs on {host}"
    problems = told.get("problems")
    why = f" ({'; '.join(map(str, problems.values()))})" if isinstance(problems, Mapping) and problems else ""
    return (
        f"{run.path}: no rank of this run that you may look at runs on {host}{printable(why, 500)}; if it runs on "
        "other nodes, or as another user, type the same there, or as that user"
    )
