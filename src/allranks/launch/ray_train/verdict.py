"""The verdict on a run with Ray: exit code, reason and last words."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace

from allranks.config import RunConfig
from allranks.doctor import causes
from allranks.doctor.ranks import without_repeating
from allranks.doctor.verdict import Left, Verdict, advice, failed, interrupted, not_stopped_in_time
from allranks.exit_codes import DONE, FAILED, INTERRUPTED, PREEMPTED
from allranks.findings import Evidence, Finding, printed
from allranks.launch.ray_train.coordinator import FINAL_CODES
from allranks.launch.ray_train.engine import BEFORE_TRAINING
from allranks.launch.ray_train.watch import Watched, failure_of
from allranks.launch.ray_train.worker import LONGEST_MESSAGE
from allranks.observe import RunDir

_AGAIN = "start the same command again with --auto-resume-from-checkpoints true"
_DRIVER = "the driver"


def conclude(watched: Watched, cfg: RunConfig, run: RunDir) -> Verdict:
    """Of a run that was watched to its end."""
    left = Left(run.path, watched.committed or None)
    shown = next((end.message[:LONGEST_MESSAGE] for end in watched.exits if end.is_shown), "")
    if watched.killed:
        code = INTERRUPTED if watched.signal == signal.SIGINT else FAILED
        return failed(code, not_stopped_in_time(_DRIVER), left)
    if watched.hang is not None:
        return failed(FAILED, watched.hang, left)
    if watched.stopped:
        return failed(FAILED, Finding(causes.NODE_ERROR, watched.stopped), left)
    if final := next((end for end in watched.exits if end.code in FINAL_CODES), None):
        reason = replace(failure_of(final), code=causes.REFUSED)
        return Verdict(final.code, reason, printed(without_repeating(reason, shown)))
    codes = [end.code for end in watched.exits]
    untrained = any(end.message == BEFORE_TRAINING for end in watched.exits)
    if watched.signal is not None and (watched.fitted is None or untrained or not set(codes) <= {DONE, PREEMPTED}):
        # The ranks were not all there yet, or not any more: none of them tells what is saved.
        kept = f"step {watched.committed} is saved in {run.path}; {_AGAIN}" if watched.committed else ""
        told = kept or "stopped before anything was saved; start the same command again"
        return interrupted(watched.signal, _DRIVER, told)
    assert watched.fitted is not None
    if watched.fitted.error is None or (codes and set(codes) <= {DONE, PREEMPTED} and not watched.failures):
        return Verdict(PREEMPTED if PREEMPTED in codes else DONE)
    if not watched.failures:
        return failed(FAILED, _by_ray(watched.fitted.error), left)
    return _failed(watched.failures, shown, cfg, left, run)


def _by_ray(error: str) -> Finding:
    if "No module named 'allranks'" in error:
        return Finding(
            causes.REFUSED,
            "allranks is not installed on every node of the cluster: install the same version where Ray's workers run",
        )
    lines = [line for line in error.splitlines() if line.strip()]
    return Finding(causes.NODE_ERROR, "Ray Train gave up:", evidence=tuple(map(Evidence, lines[-15:])))


def _failed(failures: Sequence[Finding], shown: str, cfg: RunConfig, left: Left, run: RunDir) -> Verdict:
    """The first failure, and what followed of it that says something new: all ranks may raise the same."""
    first, told = failures[0], {failures[0].said, shown}
    lines = [printed(without_repeating(first, shown))]
    for one in failures[1:]:
        if not one.said or one.said not in told:
            told.add(one.said)
            lines += [f"  then: {one.what}"] if len(lines) < 4 else []
    limit = cfg.launch.ray_max_failures
    lines += [f"  Ray restarted the ranks as often as it may (ray_max_failures: {limit})"] if limit else []
    lines += [f"  {advice(first, left)}", f"  logs of each node: {run.path / 'logs'}"]
    return Verdict(FAILED, first, "\n".join(lines))
