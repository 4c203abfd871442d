"""The child that looks at a node's ranks for `gather_node`: asks all sources at once, each in a child of its own.

Run as `python -m allranks.evidence.node`, with the question as JSON on its standard input. It writes its answer as a
line of JSON, and then, when the files are written, another one that says where.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from allranks.cluster.probe.children import Ask, Found, Reporter, ask_all
from allranks.entry_points import refuse_by_hand
from allranks.evidence.machine import look_at_gpus, look_at_kernel, look_at_nccl
from allranks.evidence.nccl_state import shortened
from allranks.evidence.processes import children, held_threads, memory_events, process_state, sockets
from allranks.evidence.py_spy import py_spy_threads
from allranks.evidence.python_stacks import Thread, threads_of
from allranks.evidence.rank_memory import (
    CannotAsk,
    RankProcess,
    flight_recorder,
    python_stacks,
    ranks_here,
    stacks_of_worker,
    start_time,
)
from allranks.evidence.recording import Recording, recording
from allranks.parent import die_with_parent
from allranks.secrets import known_secrets, without_secrets

_SUMMARY_BYTES = 200 * 2**10  # of the 256 KiB that the nodes' channel carries
_FIND_SECONDS = 2.0
_WRITE_SECONDS = 1.5
_LOG_BYTES = 16_384
_LOG_LINES = 12
_WORKERS, _WORKER_SECONDS = 16, 0.5


def main() -> None:
    question = "" if sys.stdin.isatty() else sys.stdin.read()
    if not question.strip():
        refuse_by_hand("allranks.evidence.node", "`allranks stacks`")
    asked = json.loads(question)
    die_with_parent(parent_pid=int(asked["parent"]))
    deadline = time.monotonic() + float(asked["seconds"])
    answers = ask_all({"ranks": partial(_find, asked)}, min(_FIND_SECONDS, float(asked["seconds"]) / 2))
    ranks = [_process(one) for one in answers["ranks"].found.get("ranks", {}).values()]
    problems = dict(answers["ranks"].unanswered)
    sources: dict[str, Ask] = {f"rank {one.rank}": partial(_look_at, one, deadline) for one in ranks}
    sources |= {f"log of rank {one.rank}": partial(_log, asked, one.rank) for one in ranks}
    sources |= {"gpus": look_at_gpus, "kernel": partial(look_at_kernel, began(ranks, int(asked["parent"])))}
    sources["nccl"] = partial(look_at_nccl, [one.pid for one in ranks])
    # A moment before the deadline: what has been told has to be put together, too.
    answers = ask_all(sources, max(0.5, deadline - time.monotonic() - 0.3))
    told: dict[str, Any] = {"version": 1, "node": asked["node"], "host": socket.gethostname(), "t": time.time()}
    told["ranks"] = []
    for one in ranks:
        about: dict[str, Any] = {"rank": one.rank, "pid": one.pid}
        for source in (f"rank {one.rank}", f"log of rank {one.rank}"):
            about |= answers[source].found.get("rank", {})
        told["ranks"].append(about)
    for answer in answers.values():
        problems |= answer.unanswered
        for place, why in answer.withheld.items():
            problems.setdefault(place, why)
        told |= {key: value for key, value in answer.found.items() if key != "rank"}
    told["problems"] = problems
    _print(summary(told))
    if asked["keep"]:
        written = ask_all({"files": partial(_write, asked, told)}, _WRITE_SECONDS)["files"]
        _print({"folder": written.found.get("files", {}).get("folder"), "not_kept": written.unanswered.get("files")})


def summary(told: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a message of bounded size: recordings are cut to their newest entries, then stacks to their top."""
    if isinstance(told.get("nccl"), Mapping):
        told = {**told, "nccl": shortened(told["nccl"])}
    for entries, threads, frames in ((6, 4, 40), (3, 1, 20), (2, 1, 8), (1, 1, 3), (0, 0, 0)):
        short = {**told, "ranks": [_short(rank, entries, threads, frames) for rank in told["ranks"]]}
        if len(json.dumps(short)) <= _SUMMARY_BYTES:
            return short
    # Some thousand ranks on one node, or a kernel's log without an end.
    return {
        **{key: told[key] for key in ("version", "node", "host", "t")},
        "ranks": [],
        "problems": {"node": "too much"},
    }


def _short(rank: Mapping[str, Any], entries: int, threads: int, frames: int) -> dict[str, Any]:
    short = {key: value for key, value in rank.items() if key not in ("recorder", "stacks")}
    short["threads"] = [{**one, "frames": one["frames"][:frames]} for one in rank.get("threads", [])[:threads]]
    short["workers"] = [{**one, "frames": one["frames"][:frames]} for one in rank.get("workers", [])[:threads]]
    if "recorder" in rank:
        short["recording"] = _recording(rank["recorder"]).newest(entries).to_message() if entries else None
    if not frames:
        short = {key: short[key] for key in ("rank", "pid", "process", "held_threads") if key in short}
    return short


def _recording(said: Mapping[str, Any]) -> Recording:
    try:
        return recording(said)
    except ValueError:
        return Recording()


def _find(asked: Mapping[str, Any], reporter: Reporter) -> Iterator[Found]:
    found = ranks_here(run_id=asked["run_id"], output_dir=asked["output_dir"], launch_id=asked["launch_id"])
    told = {}
    for one in found:
        said = one.said.to_message() if one.said is not None else None
        told[str(one.pid)] = {"rank": one.rank, "pid": one.pid, "start_time": one.start_time, "said": said}
    yield {"ranks": told}


def began(ranks: Sequence[RankProcess], asker: int) -> float:
    """When this start of the run began here, in seconds after the machine did: its ranks, or else who asks for it."""
    ticks = [one.start_time for one in ranks] or [start_time(asker) or 0]
    return min(ticks) / os.sysconf("SC_CLK_TCK")


def _process(told: Mapping[str, Any]) -> RankProcess:
    from allranks.evidence.rank_memory import Description

    said = told["said"] and {key: value for key, value in told["said"].items() if key != "version"}
    return RankProcess(told["rank"], told["pid"], told["start_time"], Description(**said) if said else None)


def _look_at(one: RankProcess, deadline: float, reporter: Reporter) -> Iterator[Found]:
    """What is read of the kernel first: it answers also for a process that does not run."""
    thread = one.said.native_thread if one.said else None
    yield {"rank": {"process": process_state(one.pid, thread)}}
    below = children(one.pid)
    yield {"rank": {"memory": dict(memory_events(one.pid)), "sockets": sockets(one.pid), "children": below}}
    yield {"rank": {"held_threads": held_threads(one.pid)}}
    reporter.doing("its Python stacks")
    # A part of the time for each, so that one that does not come leaves some for the next.
    left = deadline - time.monotonic()
    try:
        if one.said is None:
            threads, text = py_spy_threads(one.pid), ""
        else:
            text = python_stacks(one, deadline=time.monotonic() + max(0.3, left * 0.4))
            threads = threads_of(text, one.said.thread)
        yield {"rank": {"threads": [_plain(thread) for thread in threads], "stacks": text}}
    except CannotAsk as why:
        yield {"rank": {"no_stacks": str(why)}}
    reporter.doing("its flight recorder")
    try:
        yield {"rank": {"recorder": flight_recorder(one, deadline=time.monotonic() + max(0.3, left * 0.4))}}
    except CannotAsk as why:
        yield {"rank": {"no_recorder": str(why)}}
    reporter.doing("the stacks of its workers")
    yield {"rank": {"workers": _workers(one, [worker["pid"] for worker in below], deadline)}}


def _workers(one: RankProcess, pids: Sequence[int], deadline: float) -> list[dict[str, Any]]:
    """Of those that the rank has forked, and that answer in time: the main thread."""
    found = []
    for pid in pids[:_WORKERS]:
        try:
            text = stacks_of_worker(one, pid, deadline=min(deadline, time.monotonic() + _WORKER_SECONDS))
        except CannotAsk:  # a program of another kind, or one that is stopped: its state is told
            continue
        found += [{"pid": pid, **_plain(thread)} for thread in threads_of(text)[:1]]
    return found


def _plain(thread: Thread) -> dict[str, Any]:
    frames = [[frame.file, frame.line, frame.function] for frame in thread.frames]
    return {"name": thread.name, "trains": thread.trains, "frames": frames}


def _log(asked: Mapping[str, Any], rank: int, reporter: Reporter) -> Iterator[Found]:
    logs = Path(asked["output_dir"]) / "logs" / f"node-{asked['node']}"
    reporter.doing(str(logs))
    path = logs / f"rank-{rank:05d}.log"
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
        lines = file.read(_LOG_BYTES).decode(errors="replace").splitlines()
    known = known_secrets()
    kept = [without_secrets(line, known)[:400] for line in lines if line.strip()][-_LOG_LINES:]
    yield {"rank": {"log": kept, "output_age_seconds": max(0.0, time.time() - path.stat().st_mtime)}}


def _write(asked: Mapping[str, Any], told: Mapping[str, Any], reporter: Reporter) -> Iterator[Found]:
    folder = Path(asked["output_dir"]) / "evidence" / asked["name"] / f"node-{asked['node']}"
    reporter.doing(str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    for one in told["ranks"]:
        if one.get("stacks"):
            (folder / f"rank-{one['rank']:05d}.stacks.txt").write_text(one["stacks"], encoding="utf-8")
        if one.get("recorder"):
            (folder / f"rank-{one['rank']:05d}.recorder.json").write_text(json.dumps(one["recorder"]), encoding="utf-8")
    rest = [{key: value for key, value in one.items() if key not in ("stacks", "recorder")} for one in told["ranks"]]
    (folder / "node.json").write_text(json.dumps({**told, "ranks": rest}, indent=1) + "\n", encoding="utf-8")
    yield {"files": {"folder": str(folder)}}


def _print(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
