"""What a run that hangs is held up by, from what its nodes gathered: as one finding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from allranks.doctor import causes
from allranks.evidence.collectives import ABSENT, CIRCLE, MISMATCH, SILENT, STUCK, Stall, analyse
from allranks.evidence.nccl_state import nccl_state
from allranks.evidence.python_stacks import (
    Frame,
    folded,
    is_in_a_library,
    named,
    own_frame,
    waits_in_collective,
)
from allranks.evidence.recording import Recording, recording_from_message
from allranks.evidence.undelivered import Undelivered, undelivered
from allranks.findings import Evidence, Finding, Who
from allranks.listing import few, printable

_HANG = getattr(causes, "HANG", "hang")
_STACK_LINES = 30
_LINES = 6
_NAMED_RANKS = 4
_HELD = {
    "T": "is stopped by a signal",
    "t": "is held by a debugger",
    "D": "waits in the kernel, for storage or a device",
}
# Of torch, which saves behind the training in a thread of its own.
_LOADS = re.compile(r"/torch/utils/data/dataloader\.py$")
_SAVES = re.compile(r"/torch/distributed/checkpoint/state_dict_saver\.py$")
_KERNEL = "look at the file systems and the kernel's log on that node (dmesg): what it waits for does not answer"
_REMEDIES = {
    ABSENT: "look at what that rank does at the place named: all ranks have to enter each collective",
    MISMATCH: "all ranks have to enter the same collectives, of equal shapes, in one order: look for a condition on "
    "the rank, or on the data, before the places named",
    CIRCLE: "ranks have to use their groups in one order: look for a condition on the rank before the places named",
    SILENT: "look at that rank on its node: it answers nobody",
    STUCK: "look at the network between these ranks (firewalls, routes, cables), and at the GPUs of their nodes",
}


def diagnose(summaries: Sequence[Mapping[str, Any]], overdue: Sequence[Finding] = ()) -> Finding:
    """The finding that explains a hang, with the lines that show it. `summaries` are what `gather_node` told on each
    node; `overdue` what the deadlines found. Says so where nothing explains it."""
    ranks = ranks_of(summaries)
    frames = {rank: told for rank, about in ranks.items() if (told := frames_of(about))}
    recordings = {rank: recording_of(about) for rank, about in ranks.items()}
    held = {rank: state for rank, about in ranks.items() if (state := _state(about)) in _HELD}
    places = {rank: str(frame) for rank, told in frames.items() if (frame := own_frame(told))}
    stalls = analyse(recordings, {rank: place for rank, place in places.items() if rank not in held})
    stall = stalls[0] if stalls else None
    what, blamed, remedy = _told(stall, held, places, frames)
    if stall is not None and not held and (lost := undelivered(ranks)) and stall.kind in (STUCK, SILENT):
        what, blamed, remedy = f"{_not_delivered(lost, ranks)}; {stall.what}", (), _REMEDIES[STUCK]
    nccl = nccl_state(summaries, ranks)
    by_nccl = not what and bool(nccl.behind)
    if by_nccl:
        what, blamed, remedy = f"perhaps: by NCCL's own account {nccl.what}", nccl.behind, _REMEDIES[STUCK]
    if not what:
        what = overdue[0].what if overdue else "no rank waits in a collective, so far as their flight recorders tell"
    else:
        what = with_nodes(what, blamed, ranks)
    first = overdue[0] if overdue else None
    who = _who(blamed, ranks) or (first.who if first else Who())
    lines = [one.what for one in overdue[:_LINES] if one.what != what]
    if stall is not None:
        lines += [f"not certain: {doubt}" for doubt in stall.doubts]
        lines += [f"a consequence: {other.what}" for other in stalls[1:3] if other.ranks != stall.ranks]
    lines += nccl.lines
    lines += _surroundings(summaries, ranks, blamed)
    lines += folded(frames, most_frames=8)[:_STACK_LINES]
    return Finding(
        first.code if first else _HANG,
        printable(what, 2000),
        severity="error",
        who=who,
        evidence=tuple(Evidence(printable(line, 400)) for line in lines[:60]),
        remedy="\n".join(filter(None, [remedy, first.remedy if first and not remedy else "", _kept(summaries)])),
        known_at=who.node,
        is_certain=not by_nccl and (bool(held) or stall is None or stall.sure or not stall.ranks),
    )


def _not_delivered(lost: Sequence[Undelivered], ranks: Mapping[int, Mapping[str, Any]]) -> str:
    """Which ranks, on which nodes, the network does not carry anything between."""
    ways = {}
    for one in lost:
        to = one.peer if one.to is None else f"rank {one.to} ({_node_of(ranks.get(one.to, {}))})"
        ways[f"rank {one.rank} ({_node_of(ranks.get(one.rank, {}))}) sends to {to}"] = one.num_bytes
    told = [f"what {way} does not arrive ({size} bytes, sent again and again)" for way, size in ways.items()]
    return few(told, _NAMED_RANKS, between="; ")


def ranks_of(summaries: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """What is told of each rank, with its `node` and `host`; what is no such message is passed over."""
    found: dict[int, Mapping[str, Any]] = {}
    for one in summaries:
        given = one.get("ranks") if isinstance(one, Mapping) else None
        for about in given if isinstance(given, list) else []:
            rank = about.get("rank") if isinstance(about, Mapping) else None
            if isinstance(rank, int) and not isinstance(rank, bool) and 0 <= rank < 2**31:
                found[rank] = {**about, "node": one.get("node"), "host": one.get("host")}
    return dict(sorted(found.items()))


def frames_of(about: Mapping[str, Any]) -> list[Frame]:
    """The frames of the thread that trains, the newest first; where that waits for the one that makes its batches, for
    a worker of torch's DataLoader, or for a save behind the training, of that one."""
    threads = about.get("threads")
    training: list[Frame] = []
    making: list[Frame] = []
    saving: list[Frame] = []
    for thread in threads if isinstance(threads, list) else []:
        if isinstance(thread, Mapping) and (frames := _frames_in(thread)):
            if thread.get("trains") is True:
                training = training or frames
            elif _is_at(frames, "feed", "make"):
                making = frames
            elif any(_SAVES.search(frame.file) for frame in frames):
                saving = frames
    if saving and _is_at(training, "checkpoint", "wait", "save"):
        return saving
    if any(_LOADS.search(frame.file) and frame.function == "_try_get_data" for frame in training):
        return _of_worker(about) or training
    return making if making and _is_at(training, "feed", "batches_of") else training


def _frames_in(thread: Mapping[str, Any]) -> list[Frame]:
    told = thread.get("frames")
    return [
        Frame(printable(one[0], 400), one[1], printable(one[2], 200))
        for one in (told if isinstance(told, list) else [])[:100]
        if isinstance(one, list) and len(one) == 3 and isinstance(one[1], int)
    ]


def _of_worker(about: Mapping[str, Any]) -> list[Frame]:
    """Of a worker of torch's DataLoader that is in code of the user's; one that waits for work is in libraries only."""
    workers = about.get("workers")
    for worker in workers if isinstance(workers, list) else []:
        frames = _frames_in(worker) if isinstance(worker, Mapping) else []
        # What is below has been forked with it, and is where the rank itself was.
        own = next((at for at, frame in enumerate(frames) if frame.function == "_worker_loop"), 0)
        if not is_in_a_library(frames[:own]):
            return frames[: own + 1]
    return []


def _is_at(frames: Sequence[Frame], module: str, *functions: str) -> bool:
    """Of train/feed.py, where the batches of a step come from, or train/checkpoint.py."""
    file = f"/allranks/train/{module}.py"
    return any(frame.file.endswith(file) and frame.function in functions for frame in frames)


def recording_of(about: Mapping[str, Any]) -> Recording | None:
    """None where the rank told nothing of its flight recorder."""
    return recording_from_message(about.get("recording"))


def _told(
    stall: Stall | None, held: Mapping[int, str], places: Mapping[int, str], frames: Mapping[int, Sequence[Frame]]
) -> tuple[str, tuple[int, ...], str]:
    """What is said, whom it is about, and the next action."""
    if held:
        how = few([f"{named([rank])} {_HELD[state]} (state {state})" for rank, state in held.items()], 4)
        also = f"; {stall.what}" if stall is not None and set(stall.ranks) <= set(held) and stall.ranks else ""
        where = "".join(f"; {named([rank])} {at}" for rank in list(held)[:_NAMED_RANKS] if (at := _at([rank], places)))
        return f"{how}{also}{where}", tuple(held), _KERNEL if "D" in held.values() else ""
    if stall is None:
        away = tuple(rank for rank, told in frames.items() if not waits_in_collective(told))
        if away and len(away) < len(frames):
            return f"{named(away)} {_at(away, places)}; the others wait in a collective", away, _REMEDIES[ABSENT]
        return "", (), ""
    waiting = tuple(rank for rank in stall.waiting if rank not in stall.ranks)
    # Each by itself where they are few: what differs between them is looked for.
    groups = [(rank,) for rank in stall.ranks] if len(stall.ranks) <= _NAMED_RANKS else [stall.ranks]
    where = "; ".join(
        f"{named(group)} {_at(group, places)}" for group in (*groups, waiting) if group and _at(group, places)
    )
    perhaps = "" if stall.sure or not stall.ranks or stall.kind in (CIRCLE, SILENT) else "perhaps: "
    return f"{perhaps}{stall.what}{f'; {where}' if where else ''}", stall.ranks, _REMEDIES[stall.kind]


def with_nodes(what: str, blamed: Sequence[int], ranks: Mapping[int, Mapping[str, Any]]) -> str:
    """`what`, with the nodes of those who are blamed beside their first mention."""
    apart = [[rank] for rank in blamed[:_NAMED_RANKS]]
    for group in apart if all(_mention(named(one)).search(what) for one in apart) else [blamed]:
        nodes = list(dict.fromkeys(told for rank in group if (told := _node_of(ranks.get(rank, {})))))
        if nodes:
            mention = _mention(named(group)).search(what)
            end = mention.end() if mention else 0
            what = f"{what[:end]} ({few(nodes, _NAMED_RANKS, between='; ')}){what[end:]}" if mention else what
    return what


def _mention(of_ranks: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(of_ranks)}(?![\d-]|, \d)")


def _node_of(about: Mapping[str, Any]) -> str:
    node, host = about.get("node"), about.get("host")
    names = [f"node {node}"] if isinstance(node, (int, str)) else []
    names += [printable(host, 200)] if isinstance(host, str) and host != node else []
    return ", ".join(names)


def _at(ranks: Sequence[int], places: Mapping[int, str]) -> str:
    known = list(dict.fromkeys(places[rank] for rank in ranks if rank in places))
    return f"{'is' if len(ranks) == 1 else 'are'} at {few(known, 3)}" if known else ""


def _who(blamed: Sequence[int], ranks: Mapping[int, Mapping[str, Any]]) -> Who | None:
    about = ranks.get(blamed[0]) if blamed else None
    if about is None:
        return None
    node, host = about.get("node"), about.get("host")
    return Who(
        node if isinstance(node, (int, str)) else None,
        blamed[0] if len(blamed) == 1 else None,
        printable(host, 200) if isinstance(host, str) else None,
    )


def _state(about: Mapping[str, Any]) -> str:
    """As proc(5) names it, of the thread that trains; D also where another thread of it is held in the kernel."""
    if isinstance(held := about.get("held_threads"), list) and held:
        return "D"
    process = about.get("process")
    return str(process.get("state", "")) if isinstance(process, Mapping) else ""


def _surroundings(
    summaries: Sequence[Mapping[str, Any]], ranks: Mapping[int, Mapping[str, Any]], blamed: Sequence[int]
) -> list[str]:
    """What else was seen, of those who are blamed first."""
    lines = []
    for rank in [*blamed, *(rank for rank in ranks if rank not in blamed)][:64]:
        about = ranks.get(rank, {})
        process = about.get("process")
        if rank in blamed and isinstance(process, Mapping) and process.get("wchan"):
            lines.append(f"rank {rank}: state {process.get('state')}, waits in the kernel at {process['wchan']}")
        held = about.get("held_threads")
        for thread in (held if isinstance(held, list) else [])[:2]:
            if isinstance(thread, Mapping) and thread.get("wchan"):
                lines.append(f"rank {rank}: its thread {thread.get('comm')} waits in the kernel at {thread['wchan']}")
        for key in ("no_stacks", "no_recorder"):
            if isinstance(about.get(key), str) and (rank in blamed or len(lines) < _LINES):
                lines.append(
                    f"rank {rank}: {'no stacks' if key == 'no_stacks' else 'no flight recorder'}: {about[key]}"
                )
        memory = about.get("memory")
        if isinstance(memory, Mapping) and memory.get("oom_kill"):
            lines.append(
                f"rank {rank}: the kernel has killed {memory['oom_kill']} process(es) of its cgroup for memory"
            )
        lines += _queues(rank, about.get("sockets")) if len(lines) < 2 * _LINES else []
    for one in summaries:
        if not isinstance(one, Mapping):
            continue
        kernel = one.get("kernel")
        lines += [
            f"kernel of node {one.get('node')}: {line}" for line in (kernel if isinstance(kernel, list) else [])[-2:]
        ]
        problems = one.get("problems")
        if isinstance(problems, Mapping):
            lines += [f"node {one.get('node')}: {source}: {why}" for source, why in list(problems.items())[:_LINES]]
    return lines


def _queues(rank: int, sockets: object) -> list[str]:
    """Connections whose peer does not take what was sent."""
    return [
        f"rank {rank}: {one['send_queue_bytes']} bytes wait to be taken by {one.get('peer')}"
        f"{', sent again' if one.get('retransmits') else ''}"
        for one in (sockets if isinstance(sockets, list) else [])[:2]
        if isinstance(one, Mapping) and isinstance(one.get("send_queue_bytes"), int) and one["send_queue_bytes"] > 0
    ]


def _kept(summaries: Sequence[Mapping[str, Any]]) -> str:
    folders = [str(one["folder"]) for one in summaries if isinstance(one, Mapping) and one.get("folder")]
    return f"all that was seen: {folders[0].rpartition('/')[0]} (a folder for each node)" if folders else ""
