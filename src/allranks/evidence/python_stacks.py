"""Python stacks as faulthandler and py-spy write them: read, and folded over ranks that are at the same place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from allranks.listing import few

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)(?: \[(.*?)\])?.*\(most recent call first\):", re.I)
_FRAME = re.compile(r'^\s+File "(.*)", line (\d+|\?\?\?) in (.*)$')
_MAX_THREADS, _MAX_FRAMES, _MAX_TEXT = 100, 100, 400
# Where an installed package, torch or Python itself lies: what they do is done for the code that called them.
_NOT_OWN = re.compile(r"/(?:site|dist)-packages/|/lib/python3[.\d]*/|/torch/distributed/|^<(?:frozen|string)")
_OURS = re.compile(r"/allranks/")
# A thread of torch's or of a library's, and ours that answers, say nothing of where the rank is.
_WAITS_IN = re.compile(
    r"/torch/distributed/(?:distributed_c10d|c10d_logger|_functional_collectives|nn/functional)\.py$"
)


@dataclass(frozen=True)
class Frame:
    """A place in the code that a thread is at."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True)
class Thread:
    """A thread's frames, the newest first; `trains` is of the one that runs the training."""

    frames: tuple[Frame, ...]
    name: str = ""
    trains: bool = False


def threads_of(text: str, training_thread: int | None = None) -> list[Thread]:
    """The threads in faulthandler's `text`, the one that trains first. Lines that are something else are passed over.

    Without `training_thread`, Python's identifier of it, that is the process's first thread, which is written last.
    """
    found: list[tuple[int, str, list[Frame]]] = []
    for line in text.splitlines():
        if head := _THREAD.match(line):
            found.append((int(head[1], 16), head[2] or "", []))
        elif found and (frame := _FRAME.match(line)) and len(found[-1][2]) < _MAX_FRAMES:
            number = int(frame[2]) if frame[2].isdecimal() else 0
            found[-1][2].append(Frame(_clean(frame[1]), number, _clean(frame[3])))
    known = {ident for ident, _, _ in found}
    main = training_thread if training_thread in known else found[-1][0] if found else None
    threads = [Thread(tuple(frames), _clean(name), ident == main) for ident, name, frames in found[:_MAX_THREADS]]
    return sorted(threads, key=lambda thread: not thread.trains)


def is_in_a_library(frames: Sequence[Frame]) -> bool:
    """Whether all of them are of Python and of installed packages."""
    return all(_NOT_OWN.search(frame.file) for frame in frames)


def own_frame(frames: Sequence[Frame]) -> Frame | None:
    """The newest frame of the user's code, else of ours, else of any."""
    for is_wanted in (lambda file: not _NOT_OWN.search(file) and not _OURS.search(file), _OURS.search):
        for frame in frames:
            if is_wanted(frame.file):
                return frame
    return frames[0] if frames else None


def waits_in_collective(frames: Sequence[Frame]) -> bool:
    """Whether the thread is inside a call of torch.distributed, so far as its Python frames tell."""
    return any(_WAITS_IN.search(frame.file) for frame in frames[:8])


def folded(stacks: Mapping[int, Sequence[Frame]], *, most_frames: int = 12) -> list[str]:
    """Lines for a terminal: ranks at one place together, the fewest ranks first, which differ from the rest."""
    alike: dict[tuple[Frame, ...], list[int]] = {}
    for rank, frames in sorted(stacks.items()):
        alike.setdefault(tuple(frames), []).append(rank)
    lines: list[str] = []
    for frames, ranks in sorted(alike.items(), key=lambda one: (len(one[1]), one[1])):
        lines.append(f"{named(ranks)}:")
        places = few((f"  {frame}" for frame in frames), most_frames, between="\n", rest="\n  … {:,} more")
        lines += places.split("\n") if frames else ["  no frame of Python"]
    return lines


def named(ranks: Sequence[int]) -> str:
    """'rank 7', 'ranks 0-6, 8'."""
    spans: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if spans and rank == spans[-1][-1] + 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    words = [str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans]
    return f"rank{'' if len(set(ranks)) == 1 else 's'} {few(words, 12)}"


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:_MAX_TEXT])
