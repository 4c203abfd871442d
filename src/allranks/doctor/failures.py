"""Why each start of a run failed, kept beside the run: what ends in the same way twice is not worth a third start."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from allranks.checkpoint.commit import complete_checkpoints, step_of
from allranks.doctor import causes
from allranks.doctor.attempt import Started
from allranks.doctor.diagnosis import HOPELESS, MAY_PASS, OTHER_NODE, Restart, fingerprint, judged
from allranks.doctor.log_tail import read_from
from allranks.doctor.read_logs import step_of_text
from allranks.doctor.verdict import Verdict, may_pass
from allranks.exit_codes import FAILED
from allranks.findings import Finding
from allranks.observe import RunDir, read_events
from allranks.observe.events import StepEvent

_LAST_BYTES = 2**16  # some hundred failures
_LOG_CHARACTERS = 2**18


@dataclass(frozen=True)
class Failure:
    """One line of failures.jsonl. `t`: unix time of node 0; `run_id`: of the start that failed."""

    t: float
    run_id: str
    restart: Restart

    def to_line(self) -> str:
        told = self.restart
        message = {"t": self.t, "run": self.run_id, "verdict": told.verdict, "fingerprint": told.fingerprint}
        return json.dumps({**message, "step": told.step, "node": told.node}) + "\n"


def restart_of(reason: Finding, step: int | None) -> Restart:
    """What a restart may do about a failure that our launcher knows, after `step` (None: before the first)."""
    verdict = OTHER_NODE if reason.code == causes.NODE_LOST else MAY_PASS if may_pass(reason) else HOPELESS
    said = reason.said or reason.what.partition("\n")[0]
    node = None if reason.who.node is None else str(reason.who.node)
    return Restart(verdict, fingerprint(reason.code, said), step, node)


def failures_of(run: RunDir) -> list[Failure]:
    """Those that are kept, oldest first; lines that are torn or damaged are passed over."""
    try:
        with run.failures.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LAST_BYTES))
            lines = file.read(_LAST_BYTES).splitlines()
    except OSError:
        return []
    return [found for line in lines if (found := _read(line)) is not None]


def seen_before(verdict: Verdict, started: Started) -> Verdict:
    """`verdict` of a failed start, kept for the next one, with a line where one before ended alike.

    For the node that keeps the run's record. A disk that takes nothing costs the line in the file, no more.
    """
    reason = verdict.reason
    # Of anyone's program the exit code is its own.
    if reason is None or reason.code == causes.INTERRUPTED or (started.is_ours and verdict.exit_code != FAILED):
        return verdict
    before = failures_of(started.run)
    now = restart_of(reason, step_before(started.run, _newest_step(started)))
    # Where a program does not say how far it came, a restart may well have gone further.
    is_known = started.is_ours or now.step is not None
    found = judged(now, [one.restart for one in before]) if is_known else now
    with contextlib.suppress(OSError), started.run.failures.open("a", encoding="utf-8") as file:
        file.write(Failure(time.time(), started.run_id, found).to_line())
    if found.verdict == now.verdict or not verdict.message:
        return verdict
    return replace(verdict, message=f"{verdict.message}\n  but {told_of_before(found, before)}")


def step_before(run: RunDir, done: int | None) -> int | None:
    """The last step before a failure: the one `done` last by that start, or that of the checkpoint that it began at."""
    if done is not None:
        return done
    newest = complete_checkpoints(run.checkpoints)
    return step_of(newest[0]) if newest else None


def told_of_before(now: Restart, before: Sequence[Failure]) -> str:
    """That a start before failed alike, in a line."""
    last = next((one for one in reversed(before) if one.restart.fingerprint == now.fingerprint), None)
    when = time.strftime(" of %Y-%m-%d %H:%M", time.localtime(last.t)) if last else ""
    where = f"after the same step, {now.step}" if now.step is not None else "before the first step, too"
    return (
        f"the start{when} failed in the same way {where} (fingerprint {now.fingerprint}): find out why before "
        "you start it again"
    )


def _newest_step(started: Started) -> int | None:
    """By the events of rank 0, or by what it has printed."""
    if not started.is_ours:
        log = started.run.log(started.node, 0)
        return step_of_text(read_from(log, started.log_start(log))[-_LOG_CHARACTERS:])
    events = read_events(started.run.events(0), last_bytes=2**18)
    own = (one for one in events if isinstance(one, StepEvent) and one.run == started.run_id)
    return max((int(one.step) for one in own), default=None)


def _read(line: bytes) -> Failure | None:
    try:
        said: Mapping[str, Any] = json.loads(line)
        step, node = said["step"], said["node"]
        restart = Restart(
            str(said["verdict"]),
            str(said["fingerprint"]),
            None if step is None else int(step),
            None if node is None else str(node),
        )
        return Failure(float(said["t"]), str(said["run"]), restart)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
