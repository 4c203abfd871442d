"""How a smoke run ended, for the terminal and for the real start: the checklist, go or no-go, the certificate."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allranks.checkpoint import commit
from allranks.cluster.smoke import EVIDENCE, NUM_STEPS, SMOKE
from allranks.config import RunConfig
from allranks.exit_codes import DONE, PREEMPTED, REFUSED
from allranks.launch.node.this_node import Node
from allranks.launch.smoke.judge import Point, judge
from allranks.observe import RunDir, say
from allranks.preflight.certificate import Certificate, Parts

_MARK = {"ok": "ok", "failed": "FAILED", "not judged": "--"}


@dataclass
class Smoke:
    """A smoke run of the config `real`. `node` and `parts` (what it is a run of) are known once its nodes have met."""

    real: RunConfig
    node: Node | None = None
    parts: Parts | None = None

    def ended(self, code: int, *, speaks: bool) -> int:
        """Judge it after its ranks have ended with `code`, and tell it; returns the exit code."""
        if self.node is None:
            return code
        logs = self.node.run.logs(self.node.name)
        judged = smoke_verdict(self.real, self.node.run, self.node.run_id, logs, code, self.parts)
        if speaks:
            say(judged.text)
        return judged.exit_code


@dataclass(frozen=True)
class SmokeVerdict:
    exit_code: int
    text: str


def smoke_variables(env: Mapping[str, str], *, uses_gpus: bool) -> dict[str, str]:
    """What the ranks of a smoke run get besides: NCCL logs, each rank into a file of its own, unless told otherwise."""
    debug = {"NCCL_DEBUG": "INFO"} if uses_gpus and "NCCL_DEBUG" not in env else {}
    return {SMOKE: "1", **debug}


def smoke_verdict(cfg: RunConfig, run: RunDir, run_id: str, logs: Path, code: int, parts: Parts | None) -> SmokeVerdict:
    """Judge a smoke run of the real `cfg` whose ranks have ended with `code`; go leaves a certificate.

    `run` is its directory, `logs` this node's in it, `parts` what it was a run of.
    """
    before = _leave_no_checkpoint(run)
    if code != DONE:
        why = "it did not end well: what failed is told above" if code != PREEMPTED else "it was stopped before its end"
        return SmokeVerdict(code, "\n".join([*before, f"no-go: {why}; nothing was proved"]))
    try:
        evidence = json.loads((logs / EVIDENCE).read_text(encoding="utf-8"))
        if evidence.get("run") != run_id:
            raise ValueError("it is another run's")
        points = judge(evidence, cfg.network.settings)
    except (OSError, ValueError, AttributeError) as error:
        why = f"what the ranks saw cannot be read in {logs / EVIDENCE}: {error}"
        return SmokeVerdict(REFUSED, "\n".join([*before, f"no-go: {why}"]))
    lines = [*before, f"{'smoke:':<12}{_world(evidence['ranks'])}, {NUM_STEPS} steps", *map(_line, points)]
    failed = [point for point in points if point.state == "failed"]
    if failed:
        lines += [f"no-go: {', '.join(point.name for point in failed)}; the real run should not start like this"]
        return SmokeVerdict(REFUSED, "\n".join(lines))
    return SmokeVerdict(DONE, "\n".join([*lines, _go(cfg, run_id, evidence, parts)]))


def _go(cfg: RunConfig, run_id: str, evidence: Mapping[str, Any], parts: Parts | None) -> str:
    path = RunDir(cfg.checkpoint.output_dir).certificate
    certificate = Certificate(parts or {}, time.time(), run_id, evidence)
    try:
        certificate.write(path)
    except OSError as error:
        return f"go, but its certificate cannot be written: {path}: {error.strerror}"
    return f"go: certificate {certificate.sha256[:12]} in {path}; the real start is compared with it"


def _line(point: Point) -> str:
    text = f"  {_MARK[point.state]:<8}{point.name:<12}{point.text}"
    return f"{text}\n{'':<22}{point.remedy}" if point.state == "failed" and point.remedy else text


def _world(ranks: Sequence[Mapping[str, Any]]) -> str:
    hosts = len({str(rank.get("host")) for rank in ranks})
    return f"{len(ranks)} rank{'s' if len(ranks) > 1 else ''} on {hosts} host{'s' if hosts > 1 else ''}"


def _leave_no_checkpoint(run: RunDir) -> list[str]:
    """A smoke run that failed may leave one, which nobody wants; what cannot be removed is told."""
    left = []
    for path in (*commit.complete_checkpoints(run.checkpoints), *commit.incomplete_checkpoints(run.checkpoints)):
        try:
            commit.remove(path)
        except FileNotFoundError:
            continue  # another node, on a disk that all share
        except OSError as error:
            left.append(f"warning: {path} cannot be removed: {error.strerror}")
    return left


def clear_earlier_smoke(run: RunDir) -> None:
    """Remove checkpoints that a smoke run left which was killed."""
    _leave_no_checkpoint(run)
