"""A run's directory -> its proof, with what the run has written since: its later checkpoints, NCCL's newest words."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from allranks.errors import UsageError
from allranks.listing import few
from allranks.observe import RunDir, read_events
from allranks.observe.events import Event, PhaseEvent, ProofEvent, StepEvent
from allranks.observe.nccl_log import NcclLog, read_log
from allranks.verify.check import Check
from allranks.verify.checks import judge
from allranks.verify.record import Proof, RankProof, read_proof


def verify_run(path: Path) -> tuple[Proof, list[Check]]:
    """The proof of the run in the directory `path` and what it proves. Reads only.

    A start that had no step left to do, as of a complete run, proves nothing: the proof of the one before stands.

    Raises UsageError, in one line, for what is no run, has no proof, or one that is damaged or of a start before.
    """
    run = RunDir(path)
    if not path.is_dir():
        raise UsageError(f"{path} is no folder on this node: name the run's output_dir")
    if not run.proof.exists() and not run.manifest.exists() and not run.all_events():
        raise UsageError(f"{path} is no run's directory: it has no manifest.json, events or proof.json")
    manifest = _manifest(run)
    proof = read_proof(run.proof)
    started = manifest.get("run")
    later = started if isinstance(started, str) and proof.run is not None and started != proof.run else None
    if later is not None and not _had_nothing_to_do(run, later):
        raise UsageError(
            f"{run.proof} is of the start {proof.run}, and the last one is {later}: it has not done its first step"
        )
    proof = replace(
        proof,
        nodes=proof.nodes if later is not None else _ranks_of_nodes(manifest) or proof.nodes,
        ranks=tuple(_with_log(rank, run) for rank in proof.ranks),
    )
    checks = judge(proof)
    events = _of_start(run, proof)
    if proof.step > 0:
        checks += [*_checkpoints(events), *_since(run, proof)]
    if later is not None:
        said = f"the last, {later}, had no step left to do; all this is of {proof.run}, the one before that trained"
        checks.append(Check("start", "warning", said))
    return proof, [*checks, *_warnings(proof)]


def _manifest(run: RunDir) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(run.manifest.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _had_nothing_to_do(run: RunDir, start: str) -> bool:
    """Whether rank 0 of that start came to its end without a step."""
    events = [event for event in read_events(run.events(0)) if event.run == start]
    ended = any(isinstance(event, PhaseEvent) and event.phase == "done" for event in events)
    return ended and not any(isinstance(event, StepEvent) for event in events)


def _ranks_of_nodes(manifest: dict[str, Any]) -> dict[str, int]:
    nodes = manifest.get("nodes")
    found = {}
    for name, node in nodes.items() if isinstance(nodes, dict) else ():
        processes = node.get("processes") if isinstance(node, dict) else None
        if isinstance(processes, int) and processes > 0:
            found[str(name)] = processes
    return found


def _with_log(rank: RankProof, run: RunDir) -> RankProof:
    """With what its NCCL has written by now, where the log lies here."""
    found = run.path.glob(f"logs/node-*/nccl/rank-{rank.rank:05d}.*.log")
    files = sorted(found, key=lambda path: (path.stat().st_mtime, path.name))
    of_process = [file for file in files if file.name.endswith(f".{rank.pid}.log")] or ([] if rank.nccl else files)
    for file in reversed(of_process):
        with suppress(OSError):
            logs = read_log(file)
            # Its own by host and process, should several have written into it.
            own = [log for log in logs if log.pid == rank.pid] or logs
            if own:
                return replace(rank, nccl=_joined(rank.nccl, own[0]), nccl_file=str(file))
    return rank


def _joined(before: NcclLog | None, now: NcclLog) -> NcclLog:
    """A log that was cut or emptied since keeps what it said after the first step."""
    if before is None or now.links:
        return now
    return replace(before, problems=now.problems or before.problems)


def _of_start(run: RunDir, proof: Proof) -> list[Event]:
    """Rank 0's events since the proof was made."""
    events = [event for event in read_events(run.events(0)) if proof.run is None or event.run == proof.run]
    return [event for event in events if event.t >= proof.t - 1.0]


def _checkpoints(events: list[Event]) -> list[Check]:
    compared = [event for event in events if isinstance(event, ProofEvent) and event.host is None]
    name = "checkpoints"
    if wrong := next((event for event in compared if event.different), None):
        said = f"before the checkpoint of step {wrong.step} replicas differed: {few(wrong.different, 4, between='; ')}"
        return [Check(name, "wrong", said, "Resume from a checkpoint before it")]
    if compared:
        steps = few([event.step for event in compared], 6)
        return [Check(name, "ok", f"replicas were equal again before the checkpoints of step {steps}")]
    return []


def _since(run: RunDir, proof: Proof) -> list[Check]:
    """How far the ranks whose events lie here have come since."""
    newest = {}
    for rank in proof.ranks:
        steps = [
            event.step
            for event in read_events(run.events(rank.rank), last_bytes=64 * 1024)
            if isinstance(event, StepEvent) and (proof.run is None or event.run == proof.run)
        ]
        if steps:
            newest[rank.rank] = max(steps)
    if len(newest) < 2 or max(newest.values()) - min(newest.values()) <= 1:
        return []
    last = min(newest, key=lambda rank: newest[rank])
    said = f"rank {last} has done step {newest[last]}, and others step {max(newest.values())}"
    return [Check("progress", "warning", said)]


def _warnings(proof: Proof) -> list[Check]:
    """NCCL's own warnings: they decide nothing, and tell much."""
    told = [f"rank {rank.rank}: {rank.nccl.problems[-1]}" for rank in proof.ranks if rank.nccl and rank.nccl.problems]
    return [Check("NCCL's warnings", "warning", few(told, 4, between="; "))] if told else []
