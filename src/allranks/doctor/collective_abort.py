"""A rank that gloo aborted in a collective, since another one did not enter the same: the abort may blame either.

gloo ends the process that is sent more than it asked for. Which rank differs is not told by that. Where each of them
was is known from the stacks that the abort left in the log, and from the tracebacks of those that lost it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from allranks.doctor import causes
from allranks.findings import Finding
from allranks.listing import few, printable
from allranks.observe.events import ErrorEvent, Event

_ABORTED = "Fatal Python error: Aborted"
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$", re.MULTILINE)
_FRAME = re.compile(r'^\s+File "(.+)", line (\d+),? in (.+)$', re.MULTILINE)
_COLLECTIVES = re.compile(r"/torch/distributed/(?:distributed_c10d|c10d_logger|_functional_collectives)\.py$")
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python3[.\d]*/|^<")
_OURS = re.compile(r"/allranks/")
_NEAR = 4  # frames of torch between a collective's call and its wait
_NAMED = 4
SAID = "was aborted in a collective"
_REMEDY = (
    "all ranks have to enter the same collectives, of equal shapes, in one order: look for a condition on the rank, or "
    "on the data, before the places named"
)


def aborted_in_collective(log: str) -> str | None:
    """What is to be said of a rank whose `log` ends with the stacks of an abort in a collective; None for another."""
    start = log.rfind(_ABORTED)
    if start < 0:
        return None
    frames = _FRAME.findall(_THREAD.split(log[start:])[-1])  # the thread that trains is the first, and written last
    if not any(_COLLECTIVES.search(file) for file, _, _ in frames[:_NEAR]):
        return None
    return (
        f"{SAID} at {_place(frames)}: gloo does that where ranks enter different collectives, or with other shapes, "
        "and it does not tell which of them is wrong"
    )


def with_other_places(finding: Finding, events: Iterable[Event]) -> Finding:
    """`finding`, and where it is of such an abort, at which place the ranks were that lost the aborted one."""
    if finding.code != causes.RANK_ABORTED or SAID not in finding.what:
        return finding
    places = {
        event.rank: f"rank {event.rank} (node {event.node}{f', {event.host}' if event.host else ''}) was at "
        f"{_place(_FRAME.findall(event.traceback)[::-1])}"
        for event in events
        if isinstance(event, ErrorEvent)
        and event.rank != finding.who.rank
        and event.traceback
        and causes.code_of_error(event.message) == causes.PEER_GONE
    }
    new = [place for _, place in sorted(places.items()) if place not in finding.remedy]
    told = [few(new, _NAMED, between="; ")] if new else []
    told += [_REMEDY] if _REMEDY not in finding.remedy else []
    return replace(finding, remedy="\n".join(filter(None, [*told, finding.remedy])))


def _place(frames: Sequence[tuple[str, str, str]]) -> str:
    """The newest frame of the user's code, else of ours; `frames` come newest first."""
    for is_wanted in (lambda file: not _LIBRARY.search(file) and not _OURS.search(file), _OURS.search):
        for file, line, function in frames:
            if is_wanted(file):
                return printable(f"{file}:{line} in {function}", 400)
    return "an unknown place"
