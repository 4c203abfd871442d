"""How a run with Ray ended: exit code and last words."""

from __future__ import annotations

import signal

from allranks.config import RunConfig
from allranks.exit_codes import INTERRUPTED, PREEMPTED
from allranks.launch.outcome import Outcome
from allranks.launch.ray_train.coordinator import FINAL_CODES
from allranks.launch.ray_train.engine import BEFORE_TRAINING
from allranks.launch.ray_train.watch import Watched
from allranks.launch.ray_train.worker import described
from allranks.observe import RunDir

_AGAIN = "start the same command again with --auto-resume-from-checkpoints true"


def conclude(watched: Watched, cfg: RunConfig, run: RunDir) -> Outcome:
    """Of a run that was watched to its end. `message` is for stderr."""
    if watched.killed:
        return Outcome(
            INTERRUPTED if watched.signal == signal.SIGINT else 1,
            "error: the ranks did not stop in time and were killed",
        )
    if watched.stopped:
        return Outcome(1, f"error: {watched.stopped}")
    if final := next((end for end in watched.exits if end.code in FINAL_CODES), None):
        return Outcome(final.code, f"error: {described(final)}")
    codes = [end.code for end in watched.exits]
    untrained = any(end.message == BEFORE_TRAINING for end in watched.exits)
    if watched.signal is not None and (watched.fitted is None or untrained or not set(codes) <= {0, PREEMPTED}):
        # The ranks were not all there yet, or not any more: none of them tells what is saved.
        kept = f"step {watched.committed} is saved in {run.path}; {_AGAIN}" if watched.committed else ""
        return Outcome(
            INTERRUPTED if watched.signal == signal.SIGINT else PREEMPTED,
            f"{watched.signal.name}: {kept or 'stopped before anything was saved; start the same command again'}",
        )
    assert watched.fitted is not None
    if watched.fitted.error is None or (codes and set(codes) <= {0, PREEMPTED} and not watched.failures):
        return Outcome(PREEMPTED if PREEMPTED in codes else 0)
    return Outcome(1, _failure(watched, cfg, run))


def _failure(watched: Watched, cfg: RunConfig, run: RunDir) -> str:
    assert watched.fitted is not None and watched.fitted.error is not None
    if "No module named 'allranks'" in watched.fitted.error:
        return (
            "error: allranks is not installed on every node of the cluster: install the same version where Ray's "
            "workers run"
        )
    if not watched.failures:
        lines = [line for line in watched.fitted.error.splitlines() if line.strip()]
        return "\n".join(["error: Ray Train gave up:", *(f"  | {line}" for line in lines[-15:])])
    lines = [f"error: {watched.failures[0]}"]
    lines += [f"  then: {failure}" for failure in watched.failures[1:4]]
    limit = cfg.launch.ray_max_failures
    lines.append(f"  Ray restarted the ranks as often as it may (ray_max_failures: {limit})" if limit else "")
    saved = f"step {watched.committed} is saved; {_AGAIN}" if watched.committed else "no checkpoint was saved"
    return "\n".join(line for line in [*lines, f"  {saved}", f"  logs of each node: {run.path / 'logs'}"] if line)
