"""A run of ours, from all that it left: what its launcher found, events, logs, evidence and the checks before it."""

from __future__ import annotations

import json
import math
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from allranks.doctor import causes
from allranks.doctor.collective_abort import DIFFERS, SAID
from allranks.doctor.diagnose import ENDS_FROM_OUTSIDE, diagnose
from allranks.doctor.diagnosis import EXCEPTION, HOPELESS, LIKELY, SURE, Diagnosis
from allranks.doctor.ended_well import ended_well
from allranks.doctor.failures import failures_of, restart_of, told_of_before
from allranks.doctor.first_failure import first_failure
from allranks.doctor.full_disk import with_full_disk
from allranks.doctor.preempted import preempted
from allranks.doctor.ranks import first_of_ranks
from allranks.doctor.read_logs import diagnosis_of_text, our_index, read_log
from allranks.doctor.reading.scanner import Read, Scanner
from allranks.doctor.reading.sources import Source, sources
from allranks.doctor.without_end import goes_on, without_an_end
from allranks.errors import UsageError
from allranks.exit_codes import DONE
from allranks.findings import Evidence, Finding, from_message
from allranks.listing import printable
from allranks.observe import RunDir, read_events
from allranks.observe.events import ErrorEvent, Event, StepEvent
from allranks.observe.rundir import has_a_record

# What our launcher knows no more of than that it happened: what the logs word goes before it.
BARE = frozenset(
    [
        causes.RANK_EXIT,
        causes.RANK_ERROR,
        causes.RANK_ABORTED,
        causes.NODE_ERROR,
        causes.PEER_GONE,
        causes.STOPPED,
        causes.LAUNCHER_KILLED,
    ]
)
# What a signal that a rank got from its own code means.
_CRASHES = frozenset(["segfault", "bus-error"])
_MAX_BUNDLE_BYTES = 2**28  # unpacked; `allranks bundle` packs 16 MiB
_MAX_BUNDLE_FILES = 20_000
_MAX_RECORD_BYTES = 2**24
_MOST_EVIDENCE = 6
_MOST_NOTES = 4


def is_run(path: Path) -> bool:
    """Whether it is a run directory of ours, or the bundle of one."""
    if path.is_dir():
        return has_a_record(RunDir(path))
    return path.is_file() and path.name.endswith((".tar.gz", ".tgz")) and tarfile.is_tarfile(path)


def diagnosis_of_run(path: Path) -> Diagnosis:
    """Why this run failed: our own finding where it knows, else what its logs word; with what the checks had said."""
    with _unpacked(path) as folder:
        run = RunDir(folder)
        own = _own_finding(run)
        reads = [*_logs(run), *_events(run)]
        told = diagnose(reads)
        live = _json(run.live)
        if own is None and not told.is_known:
            own = without_an_end(live, run.live)
        joined = _joined(own, told) if own is not None else ended_well(told, live.get("ended"), reads)
        joined = with_full_disk(joined, path) if path.is_dir() else joined
        joined = _seen_before(run, joined)
        going = () if joined.is_known or joined.ended_well else goes_on(live, run.live)
        notes = [*going, *joined.notes, *_said_before(run, joined), *_kernels(run)]
        if not has_a_record(run):
            raise UsageError(f"{printable(path)}: no run of allranks is in it")
    joined = replace(joined, notes=tuple(notes))
    return joined if path.is_dir() else _within(path, folder, joined)


def _within(bundle: Path, folder: Path, told: Diagnosis) -> Diagnosis:
    """`told` of what was unpacked into `folder`, with the places in `bundle`: the folder is gone by now."""

    def placed(one: Evidence) -> Evidence:
        return replace(one, file=one.file and one.file.replace(f"{folder}/", f"{bundle}/"))

    return replace(
        told,
        evidence=tuple(map(placed, told.evidence)),
        explained=tuple(replace(one, first=placed(one.first)) for one in told.explained),
        notes=tuple(note.replace(f"{folder}/", f"{bundle}/") for note in told.notes),
    )


def knows_more(own: Finding, told: Diagnosis) -> bool:
    """Whether a rule knows what `own` only reports. What it names must be of the rank that failed, or of none. An
    exception that no rule knows says more than the exit code of the rank that raised it."""
    if told.cause in (None, EXCEPTION) or told.is_broad:
        is_its_own = told.is_known and told.rank is not None and told.rank == own.who.rank
        return is_its_own and own.code == causes.RANK_EXIT
    follows = own.code in (causes.PEER_GONE, causes.RANK_ABORTED, causes.STOPPED)
    same_rank = own.who.rank is None or told.rank is None or told.rank == own.who.rank
    return own.code in BARE and (follows or same_rank)


def is_its_crash(own: Finding, told: Diagnosis) -> bool:
    """Whether a rule knows what it means that this rank was ended by that signal."""
    of_it = told.rank is None or own.who.rank is None or told.rank == own.who.rank
    return own.code == causes.RANK_KILLED and told.cause in _CRASHES and of_it


def _joined(own: Finding, told: Diagnosis) -> Diagnosis:
    shown = _evidence_of(own)
    rank = own.who.rank
    node = None if own.who.node is None else str(own.who.node)
    if knows_more(own, told):
        if SAID in own.what:  # whom the abort hit says nothing; where the ranks were does
            is_known = own.what.startswith(DIFFERS)
            told = replace(told, title=own.what, evidence=(*told.evidence, *map(Evidence, _places_of_ranks(own))))
            return replace(told, rank=rank if is_known else None, node=(own.who.host or node) if is_known else None)
        return replace(
            told,
            rank=told.rank if told.rank is not None else rank,
            node=told.node or own.who.host or node,
        )
    same = told.rank is None or rank is None or told.rank == rank
    speaks = same and told.is_known and not told.is_broad and told.cause not in ENDS_FROM_OUTSIDE
    crashed = is_its_crash(own, told)
    # What follows from another one's end shows nothing of this one's, and is told as that.
    shows = same and (told.is_known or told.symptom is not None or not shown)
    what, _, more = own.what.partition("\n")
    return Diagnosis(
        cause=own.code,
        title=what,
        certainty=SURE if own.is_certain and causes.is_cause(own.code) and own.code not in BARE else LIKELY,
        meaning=told.meaning if crashed else more.strip(),
        remedy="\n".join([told.remedy, *_places(own.remedy)]) if crashed else own.remedy,
        not_proven=told.not_proven if speaks else "",
        look_at=told.look_at if speaks else "",
        rank=rank,
        node=own.who.host or node,
        evidence=(*shown, *(told.evidence if shows else ()))[:_MOST_EVIDENCE],
        explained=told.explained,
        others=(told.cause,) if told.cause and told.cause != EXCEPTION and not same else told.others,
        restart=restart_of(own, told.restart.step),
        notes=told.notes,
    )


def _places_of_ranks(own: Finding) -> list[str]:
    return [line for line in own.remedy.splitlines() if " was at " in line]


def _places(remedy: str) -> list[str]:
    """Of what a launcher says is to be done: which logs there are."""
    return [line for line in remedy.splitlines() if line.startswith(("its log: ", "all logs: "))]


def _seen_before(run: RunDir, told: Diagnosis) -> Diagnosis:
    """`told`, where the start before this one had failed in the same way at the same step."""
    kept = failures_of(run)
    if not kept or kept[-1].restart.verdict != HOPELESS or kept[-1].run_id != _json(run.live).get("run_id"):
        return told
    if not told.is_known or told.restart.verdict == HOPELESS:
        return told
    now, before = kept[-1].restart, [one.restart for one in kept[:-1]]
    if not any((one.fingerprint, one.step) == (now.fingerprint, now.step) for one in before):
        return told  # hopeless by itself
    note = told_of_before(kept[-1].restart, kept[:-1])
    return replace(told, restart=replace(told.restart, verdict=HOPELESS), notes=(*told.notes, note))


def _evidence_of(own: Finding) -> tuple[Evidence, ...]:
    said = own.said.splitlines()[0] if own.said.strip() else ""
    lines = [Evidence(said)] if said and not own.evidence else []
    return (*lines, *own.evidence)


def _own_finding(run: RunDir) -> Finding | None:
    """What the launcher ended the run with; else what was found while ranks hung; else the ranks' own errors."""
    live = _json(run.live)
    ended = live.get("ended")
    if isinstance(ended, Mapping) and ended.get("exit_code") == DONE:
        return None
    if isinstance(ended, Mapping) and (found := from_message(ended.get("finding"))):
        return _with_host(found, live.get("nodes"))
    events = _last_start(event for path in run.all_events() for event in read_events(path, last_bytes=2**20))
    if isinstance(ended, Mapping) and (found := preempted(ended, live.get("nodes"), events)):
        return found
    if not isinstance(ended, Mapping) and (found := _of_a_node(run, live, events)):
        return _with_host(found, live.get("nodes"))
    kept = sorted(run.evidence.glob("*/diagnosis.json"))
    found_then = [found for path in kept[-1:] if (found := from_message(_json(path)))]
    of_ranks = first_of_ranks(0, events, "", lambda rank: run.log(0, rank))
    return first_failure(filter(None, [*found_then, of_ranks]))


def _of_a_node(run: RunDir, live: Mapping[str, Any], events: Sequence[Event]) -> Finding | None:
    """What nodes said when their parts ended, where the one that keeps the record could not: it was lost itself, or
    has a disk of its own."""
    newest = live.get("run_id") or (events[-1].run if events else None)
    ends = [told for path in run.all_ends() if (told := _json(path)).get("run") == newest]
    return first_failure(found for told in ends if (found := from_message(told.get("finding"))))


def _with_host(found: Finding, nodes: object) -> Finding:
    """With the host of the node that it names by its rank alone."""
    if found.who.node is None or found.who.host is not None:
        return found
    for node in nodes if isinstance(nodes, list) else []:
        if isinstance(node, Mapping) and node.get("node") == found.who.node and isinstance(node.get("host"), str):
            return replace(found, who=replace(found.who, host=printable(node["host"], 64) or None))
    return found


def _last_start(events: Iterable[Event]) -> list[Event]:
    ordered = sorted(events, key=lambda event: event.t)
    return [event for event in ordered if event.run == ordered[-1].run] if ordered else []


def _logs(run: RunDir) -> list[Read]:
    try:
        found = sources([run.path / "logs"])
    except UsageError:  # it has none
        return []
    return [read_log(source) for source in found]


def _events(run: RunDir) -> Iterator[Read]:
    """The events of each rank as a log has them, so that what a rank said counts beside what it printed."""
    for path in run.all_events():
        events = list(read_events(path, last_bytes=2**20))
        lines = [_line_of(event) for event in events]  # of others an empty one, so that places are the file's
        if any(lines):
            scanner = Scanner(our_index(), Source(None, str(path), rank=events[0].rank))
            before = max(0, _newlines(path) - len(events))  # what is no more looked at
            scanner.feed(b"\n" * before + "\n".join(lines).encode(), at_end=True)
            yield scanner.read


def _newlines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(2**20), b""))
    except OSError:
        return 0


def _line_of(event: Event) -> str:
    if isinstance(event, StepEvent):
        said = f"step {event.step}{'' if math.isnan(event.loss) else f' loss {event.loss}'}"  # it may not be told
    elif isinstance(event, ErrorEvent):
        kind = f"{event.type}: " if event.type else ""
        said = f"{kind}{event.message[:1500]}"
    else:
        return ""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.t))
    return f"{when},{int(event.t % 1 * 1000):03d} - {' '.join(said.split())}"


def _said_before(run: RunDir, told: Diagnosis) -> list[str]:
    """What the checks before the start had found of the node that failed."""
    findings = _json(run.preflight).get("findings")
    notes = []
    for message in findings if isinstance(findings, list) else []:
        found = from_message(message)
        nodes = message.get("nodes", []) if isinstance(message, Mapping) else []
        if found is None or found.severity == "note" or not told.is_known:
            continue
        where = ", ".join(str(node) for node in nodes[:8])
        if told.node is None or any(told.node in (str(node), *str(node).strip(")").split()[1:]) for node in nodes):
            notes.append(
                f"the checks had found, of {where or 'all nodes'}: {found.what.splitlines()[0]} ({found.code})"
            )
    return notes[:_MOST_NOTES]


def _kernels(run: RunDir) -> list[str]:
    """What a rule knows of what the nodes' kernels said while ranks hung, as the newest evidence keeps it."""
    notes = []
    for path in sorted(run.evidence.glob("*"))[-1:]:
        for told in map(_json, sorted(path.glob("node-*/node.json"))):
            lines = told.get("kernel")
            for line in lines if isinstance(lines, list) else []:
                known = diagnosis_of_text(line) if isinstance(line, str) else None
                if known is not None and (name := known.cause or known.symptom):
                    host = printable(told.get("host"), 64)
                    notes.append(f"the kernel of {host} said meanwhile: {printable(line, 300)} ({name})")
    return list(dict.fromkeys(notes))[:_MOST_NOTES]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_MAX_RECORD_BYTES))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, Mapping) else {}


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The run's folder; of a bundle, unpacked for as long as it is needed, and nothing beside its own folder."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="allranks-doctor-") as folder:
        try:
            with tarfile.open(path) as bundle:
                total = 0
                for number, member in enumerate(bundle):
                    total += member.size
                    if number >= _MAX_BUNDLE_FILES or total > _MAX_BUNDLE_BYTES:
                        raise UsageError(f"{printable(path)}: larger than a bundle of allranks")
                    if member.isfile():
                        bundle.extract(member, folder, filter="data")
        except (tarfile.TarError, OSError, EOFError) as why:
            raise UsageError(f"{printable(path)}: cannot be read as a bundle: {why}") from why
        inside = [one for one in Path(folder).iterdir() if one.is_dir()]
        yield inside[0] if len(inside) == 1 and not has_a_record(RunDir(folder)) else Path(folder)
