"""The verdict on an attempt: how it ended, why, and what a restart may do about it."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from pathlib import Path

from allranks.checkpoint.commit import complete_checkpoints, step_of
from allranks.doctor import causes
from allranks.doctor.attempt import Started
from allranks.doctor.collective_abort import is_of_the_program
from allranks.doctor.first_failure import goes_before
from allranks.exit_codes import DONE, INTERRUPTED, PREEMPTED
from allranks.findings import Finding, Who, printed, told


@dataclass(frozen=True)
class Verdict:
    """Of one node, or of the whole run where one command started it. `message` is for stderr, "" for nothing to say.

    `reason` is what the end follows from; only an attempt that is done, or that has saved as it was asked to, has none.
    """

    exit_code: int
    reason: Finding | None = None
    message: str = ""
    restarts: int | None = None
    """How often all ranks will have been started again, where the nodes now do so; None where the run ends."""

    def __post_init__(self) -> None:
        if self.reason is None and self.exit_code not in (DONE, PREEMPTED):
            raise ValueError(f"an end with exit code {self.exit_code} has a reason")

    @property
    def may_pass(self) -> bool:
        """Whether the same start may end otherwise."""
        return self.reason is None or may_pass(self.reason)


@dataclass(frozen=True)
class Left:
    """What an attempt leaves: `newest` is the step of the newest checkpoint in `path`, None where there is none.

    `is_known` is False where checkpoints are not ours to know of: of anyone's program. `num_nodes`: that are to be
    started again.
    """

    path: Path = Path()
    newest: int | None = None
    is_known: bool = True
    num_nodes: int = 1


def left_by(started: Started) -> Left:
    """What is left, as far as this node can read it."""
    newest = complete_checkpoints(started.run.checkpoints) if started.is_ours else []
    return Left(started.run.path, step_of(newest[0]) if newest else None, started.is_ours, started.num_nodes)


def failed(exit_code: int, reason: Finding, left: Left, *, shown: Finding | None = None) -> Verdict:
    """An attempt that failed for `reason`; `shown` is what this terminal is to read of it, where that is less."""
    return Verdict(exit_code, reason, "\n  ".join(filter(None, [printed(shown or reason), advice(reason, left)])))


def cut_off(exit_code: int, reason: Finding, left: Left, *, shown: Finding | None = None) -> Verdict:
    """The same, where it is another node that failed, and the ranks of this one were ended for it."""
    told = "; ".join(filter(None, ["the ranks of this node were ended", advice(reason, left)]))
    return Verdict(exit_code, reason, f"{printed(shown or reason)}\n  {told}")


def with_elsewhere(own: Verdict, elsewhere: Finding, left: Left) -> Verdict:
    """`own`, and what another node says of its failure: first of the two is what the other follows from."""
    assert own.reason is not None
    if (elsewhere.code, elsewhere.who.rank) == (
        own.reason.code,
        own.reason.who.rank,
    ) and own.reason.code == causes.RANK_STOPPED:
        return own  # both nodes know of the same rank
    alike = bool(elsewhere.said) and elsewhere.said == own.reason.said
    if alike and elsewhere.who.rank == own.reason.who.rank:
        return own  # its events lie on storage that both nodes see
    if not goes_before(elsewhere, own.reason):
        what = elsewhere.what.removesuffix(elsewhere.said) + "the same" if alike else told(elsewhere)
        return replace(own, message=f"{own.message}\n  the first to fail was {what}")
    what = own.reason.what.removesuffix(own.reason.said) + "the same" if alike else own.reason.what
    message = f"{printed(elsewhere)}\n  here, after that: {what}\n  {advice(elsewhere, left)}"
    return Verdict(own.exit_code, elsewhere, message)


def interrupted(received: signal.Signals, node: int | str, told: str, exit_code: int | None = None) -> Verdict:
    """An attempt that a signal ended; `told` says how, and what is left."""
    if exit_code is None:
        exit_code = INTERRUPTED if received == signal.SIGINT else PREEMPTED
    reason = asked_to_stop(received, node, told)
    return Verdict(exit_code, reason, reason.what)


def asked_to_stop(received: signal.Signals, node: int | str, told: str) -> Finding:
    """That somebody, or a scheduler, ended the run by a signal to this node."""
    return Finding(causes.INTERRUPTED, f"{received.name}: {told}", who=Who(node), known_at=node)


def not_stopped_in_time(node: int | str) -> Finding:
    """That ranks of this node, asked to save and stop, did not, and were killed."""
    return Finding(causes.STOP_TIMEOUT, "the ranks did not stop in time and were killed", who=Who(node), known_at=node)


def may_pass(reason: Finding) -> bool:
    """Whether another start may end better, with nothing changed."""
    return causes.may_pass(reason.code) and not is_of_the_program(reason)


def advice(reason: Finding, left: Left) -> str:
    """What is saved, and whether to start again: at once only against what may pass. The same on every node.

    Nothing of a program that ran on one node: its user sees as much as we do.
    """
    if not left.is_known and left.num_nodes == 1:
        return ""
    saved = (
        f"step {left.newest} is saved in {left.path}" if left.newest is not None else "no checkpoint was complete yet"
    )
    where = " on all nodes" if left.num_nodes > 1 else ""
    if may_pass(reason):
        again = f"start the same command again{where}"
    else:
        again = f"the same command would end in the same way; once that is mended, start it{where or ' again'}"
    how = " with --auto-resume-from-checkpoints true" if left.newest is not None else ""
    return f"{saved}: {again}{how}" if left.is_known else again
