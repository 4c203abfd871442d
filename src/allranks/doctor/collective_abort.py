"""A rank that gloo aborted in a collective, since another one did not enter the same: the abort may blame either.

gloo ends the process that is sent more than it asked for. Which rank differs is not told by that. Where each of them
was is known from the stacks that the abort left in the log, and from the tracebacks of those that lost it. A rank that
has done a step more than the others has left out a collective of that step: all have to enter its last one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from allranks.doctor import causes
from allranks.doctor.frames import FRAME, place_of
from allranks.doctor.last_entered import who_differs
from allranks.doctor.of_rank import LastEntered
from allranks.findings import Finding, Who
from allranks.listing import few
from allranks.observe.events import ErrorEvent, Event, StepEvent

_ABORTED = "Fatal Python error: Aborted"
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$", re.MULTILINE)
_COLLECTIVES = re.compile(r"/torch/distributed/(?:distributed_c10d|c10d_logger|_functional_collectives)\.py$")
_NCCLS = re.compile(r"ProcessGroupNCCL|\bNCCL (?:WARN|INFO|error)|ncclInternalError|ncclSystemError|DistBackendError")
# Written before the abort, also where it is in no call of Python's, such as the reductions of DDP's backward pass.
_GLOOS = re.compile(r"gloo::EnforceNotMet.*?distributed collective mismatch", re.DOTALL)
_TAIL_BYTES = 2**16
_NEAR = 4  # frames of torch between a collective's call and its wait
_NAMED = 4
DIFFERS = "ranks do not enter the same collectives: "
SAID = "was aborted in a collective"
_BY_GLOO = "gloo does that where ranks enter different collectives"
_REMEDY = (
    "all ranks have to enter the same collectives, of equal shapes, in one order: look for a condition on the rank, or "
    "on the data, before the places named"
)


def aborted_in_collective(log: str, *, uses_nccl: bool = False) -> str | None:
    """What is to be said of a rank whose `log` ends with the stacks of an abort in a collective; None for another.

    With `uses_nccl` it need not be gloo that aborted it.
    """
    start = log.rfind(_ABORTED)
    if start < 0:
        return None
    frames = FRAME.findall(_THREAD.split(log[start:])[-1])  # the thread that trains is the first, and written last
    if not any(_COLLECTIVES.search(file) for file, _, _ in frames[:_NEAR]) and not _GLOOS.search(log[:start]):
        return None
    if uses_nccl or _NCCLS.search(log[-_TAIL_BYTES:]):
        return f"{SAID} at {place_of(frames)}: the collective ended the process; its log says why"
    return (
        f"{SAID} at {place_of(frames)}: {_BY_GLOO}, or with other shapes, and it does not tell which of them is wrong"
    )


def is_an_abort(finding: Finding | None) -> bool:
    """Whether it is of a rank that was aborted in a collective."""
    return finding is not None and finding.code == causes.RANK_ABORTED and SAID in finding.what


def is_of_the_program(finding: Finding) -> bool:
    """Whether it is known that ranks entered different collectives, which no restart mends."""
    return DIFFERS in finding.what or (SAID in finding.what and _BY_GLOO in finding.what)


def with_other_places(
    finding: Finding,
    events: Iterable[Event],
    by: str = "",
    entered: Callable[[], Mapping[int, LastEntered]] = dict,
    num_ranks: int | None = None,
) -> Finding:
    """`finding`, and where it is of such an abort, which rank differs, as far as that is known, and at which place the
    ranks were that lost the aborted one. `by`: how it is known which steps they have done; `entered`: what those ranks
    had entered last. `num_ranks`: of the whole run, of which more than half have to be at one place for the others to
    differ; None for those that are told of."""
    if not is_an_abort(finding):
        return finding
    events = list(events)
    lost = {
        event.rank: event
        for event in events
        if isinstance(event, ErrorEvent)
        and event.rank != finding.who.rank
        and event.traceback
        and causes.code_of_error(event.message) == causes.PEER_GONE
    }
    places = {rank: place_of(FRAME.findall(event.traceback or "")[::-1]) for rank, event in sorted(lost.items())}
    new = [
        said for rank, place in places.items() if (said := f"{_named(lost[rank])} was at {place}") not in finding.remedy
    ]
    told = [few(new, _NAMED, between="; ")] if new else []
    told += [_REMEDY] if _REMEDY not in finding.remedy else []
    finding = replace(finding, remedy="\n".join(filter(None, [*told, finding.remedy])))
    blaming = _blaming(finding, lost, places, events, by, num_ranks)
    if blaming is finding and DIFFERS not in finding.what and finding.who.rank is not None:
        odd, why = who_differs(entered(), finding.who.rank, set(lost), num_ranks)
        return _with(finding, odd, why, lost) if odd else finding
    return blaming


def _blaming(
    finding: Finding,
    lost: Mapping[int, ErrorEvent],
    places: Mapping[int, str],
    events: Sequence[Event],
    by: str,
    num_ranks: int | None,
) -> Finding:
    """`finding` with the rank that differs before the rest, where its steps or the others' places tell which it is."""
    if DIFFERS in finding.what or finding.who.rank is None:
        return finding
    steps = {event.rank: event.step for event in events if isinstance(event, StepEvent)}
    aborted = finding.who.rank
    known = {rank: step for rank, step in steps.items() if rank in lost or rank == aborted}
    ahead = [rank for rank, step in known.items() if step == max(known.values())]
    behind = [rank for rank in known if rank not in ahead]
    if aborted in known and behind and len(ahead) <= len(behind):
        verb = "has" if len(ahead) == 1 else "have"
        why = (
            f"{verb} left out a collective of step {known[ahead[0]]}: {'it has' if len(ahead) == 1 else 'they have'} "
            f"done that step, and {_ranks(behind)}, without which it cannot be done, only step "
            f"{max(known[rank] for rank in behind)}{by}"
        )
        return _with(finding, ahead, why, lost)
    at: dict[str, list[int]] = {}
    for rank, place in {**places, aborted: _aborted_at(finding.what)}.items():
        at.setdefault(place, []).append(rank)
    most = max(at.values(), key=len)
    odd = sorted(rank for ranks in at.values() if ranks is not most for rank in ranks)
    if odd and len(most) > max(len(odd), (num_ranks or 0) // 2):
        place = next(place for place, ranks in at.items() if ranks is most)
        return _with(finding, odd, f"{'is' if len(odd) == 1 else 'are'} elsewhere than the others, at {place}", lost)
    return finding


def _with(finding: Finding, ranks: Sequence[int], why: str, lost: Mapping[int, ErrorEvent]) -> Finding:
    first = lost.get(ranks[0])
    who = Who(first.node, ranks[0], first.host) if first is not None else finding.who
    whom = few([_named(lost[rank]) if rank in lost else f"rank {rank} (node {who.node})" for rank in ranks], _NAMED)
    return replace(finding, what=f"{DIFFERS}{whom} {why}; {finding.what}", who=who)


def _aborted_at(what: str) -> str:
    return what.partition(f"{SAID} at ")[2].partition(": gloo ")[0]


def _named(event: ErrorEvent) -> str:
    return f"rank {event.rank} (node {event.node}{f', {event.host}' if event.host else ''})"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'' if len(ranks) == 1 else 's'} {few(sorted(ranks), 12)}"
