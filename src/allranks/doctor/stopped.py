"""Ranks that nobody ended and that do not run all the same: stopped by a signal, or waiting in the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from allranks.doctor import causes
from allranks.findings import Evidence, Finding, Who
from allranks.observe.events import Event, PhaseEvent, StepEvent, TimeLimitEvent

TRACED = "t"
WAITING = "D"


def rank_stopped(who: Who, pid: int, state: str, seconds: float, events: Iterable[Event] = ()) -> Finding:
    """A rank that for `seconds` has been in `state`, as proc(5) names them: T, t (held by a debugger) or D.

    `events` are its own, in their order; they tell where it is, and how long the others wait for it.
    """
    how = {
        TRACED: "is held by a debugger",
        WAITING: f"has waited in the kernel for {seconds:.0f} s, for storage or a device that does not answer,",
    }.get(state, "is stopped, as by SIGSTOP,")
    where, limit = place(events)
    where = f", {where}" if where else ""
    on = f" on {who.host}" if who.host else ""
    remedy = {
        TRACED: f"let the debugger go on{on}",
        WAITING: f"look at the file systems and the kernel's log{on} (dmesg)",
    }.get(state, f"to let it go on, type{on}: kill -CONT {pid}")
    waits = f"; the other ranks wait for it, each collective for {limit} s at most" if limit else ""
    return Finding(
        causes.RANK_STOPPED,
        f"rank {who.rank} ({_named(who)}pid {pid}) {how} state {state}{where}",
        severity="warning",
        who=who,
        remedy=f"{remedy}{waits}",
        known_at=who.node,
    )


def waited_in_vain(stopped: Finding, then: Finding) -> Finding:
    """The same as what a run failed of; `then` is what followed from it, such as the time-out of a healthy rank."""
    what = f"{stopped.what}; the others waited for it in vain"
    return replace(stopped, what=what, severity="error", evidence=(Evidence(f"after that: {then.what}"),))


def _named(who: Who) -> str:
    return "".join(f"{part}, " for part in (f"node {who.node}" if who.node is not None else "", who.host) if part)


def place(events: Iterable[Event]) -> tuple[str, int | None]:
    """How far a rank has come, by its events in their order, and the seconds that its collectives may take."""
    phase, step, limit = "", None, None
    for event in events:
        if isinstance(event, PhaseEvent):
            phase = event.phase
        elif isinstance(event, StepEvent):
            step = event.step
        elif isinstance(event, TimeLimitEvent):
            limit = event.seconds
    words = [f"in phase {phase}" if phase else "", f"after step {step}" if step is not None else ""]
    return " ".join(filter(None, words)), limit
