"""What a node tells of its ranks at the end to the one that keeps the run's record, which may not see their logs.

Which rank entered another collective shows only where all of them are known: of an abort in one, each rank that lost
the aborted one says how far it came, where it was, and what it had entered last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from allranks.doctor.causes import PEER_GONE, code_of_error
from allranks.doctor.frames import frame_of
from allranks.listing import printable
from allranks.observe.events import ErrorEvent, Event, StepEvent

_MOST_RANKS = 512
_MOST_WORD, _MOST_FRAME = 200, 500


@dataclass(frozen=True)
class LastEntered:
    """`entered` had followed on the same collective `times` times before, `usual` most often: `usual_times` times."""

    entered: str
    times: int
    usual: str
    usual_times: int


@dataclass(frozen=True)
class OfRank:
    """`step`: the newest that it has done; `message`: of its end, where it lost another rank, at `frame`, a line as a
    traceback has it."""

    rank: int
    node: int
    step: int | None = None
    message: str = ""
    frame: str = ""
    entered: LastEntered | None = None

    def events(self) -> Iterator[ErrorEvent | StepEvent]:
        """The same as its events would have it."""
        if self.step is not None:
            yield StepEvent(rank=self.rank, step=self.step)
        if self.frame:
            yield ErrorEvent(rank=self.rank, node=self.node, message=self.message, traceback=self.frame)


def of_ranks(node: int, events: Iterable[Event], entered: Mapping[int, LastEntered]) -> tuple[OfRank, ...]:
    """What `node` can tell of its ranks by their events, and by what each had entered last."""
    steps: dict[int, int] = {}
    errors: dict[int, ErrorEvent] = {}
    for event in events:
        if isinstance(event, StepEvent):
            steps[event.rank] = int(event.step)
        elif isinstance(event, ErrorEvent) and event.traceback and code_of_error(event.message) == PEER_GONE:
            errors[event.rank] = event
    found = []
    for rank in sorted(steps.keys() | errors.keys() | entered.keys()):
        message = errors[rank].message[:_MOST_WORD] if rank in errors else ""
        frame = frame_of(errors[rank].traceback or "")[:_MOST_FRAME] if rank in errors else ""
        found.append(OfRank(rank, node, steps.get(rank), message, frame, entered.get(rank)))
    return tuple(found)


def to_message(ranks: Sequence[OfRank]) -> list[dict[str, Any]]:
    """Plain JSON types, bounded in size."""
    return [asdict(one) for one in ranks[:_MOST_RANKS]]


def from_message(message: object) -> tuple[OfRank, ...]:
    """What a node has told, whatever it is: what cannot be read is passed over."""
    found = []
    for one in message[:_MOST_RANKS] if isinstance(message, list) else []:
        if not isinstance(one, Mapping) or not (_is_number(one.get("rank")) and _is_number(one.get("node"))):
            continue
        step = one["step"] if _is_number(one.get("step")) else None
        words = (printable(one.get("message") or "", _MOST_WORD), printable(one.get("frame") or "", _MOST_FRAME))
        found.append(OfRank(one["rank"], one["node"], step, *words, entered_from(one.get("entered"))))
    return tuple(found)


def entered_from(said: object) -> LastEntered | None:
    """Of a rank's file, or of another node's word; None where it cannot be read."""
    if not isinstance(said, Mapping) or not (_is_number(said.get("times")) and _is_number(said.get("usual_times"))):
        return None
    if not (isinstance(said.get("entered"), str) and isinstance(said.get("usual"), str)):
        return None
    words = [printable(said[key], _MOST_WORD) for key in ("entered", "usual")]
    return LastEntered(words[0], said["times"], words[1], said["usual_times"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
