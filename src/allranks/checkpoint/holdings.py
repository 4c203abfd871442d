"""What nodes with disks of their own have of a run's checkpoints, before anything is loaded.

A checkpoint of several disks is whole only when all nodes are asked: each has the shards that its ranks wrote. So when
nodes meet, every one says what it has, by names and sizes, and a start that would begin below a committed step of any
of them is refused while nothing is lost. The ranks read the bytes later (train/storage.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from allranks.checkpoint import commit
from allranks.errors import CheckpointError
from allranks.listing import few

NEWEST_STEPS = 3
"""Of so many steps a node says what it has: the newest decides, the ones before it are only told."""

_MOST_FILES = 100_000  # of one step, from the wire; 10,000 ranks write fewer
_SHOWN = 4

Start = Literal["fresh", "newest"]
"""Where a start begins: at step 0, or at the newest committed step. One that names its checkpoint needs no asking."""


@dataclass(frozen=True)
class StepFiles:
    """What one node has of a step (name -> bytes): the files `here`, and those that its COMPLETE lists, if any."""

    step: int
    here: Mapping[str, int]
    listed: Mapping[str, int] | None = None

    @property
    def name(self) -> str:
        return commit.checkpoint_path(Path(), self.step).name

    def to_message(self) -> dict[str, Any]:
        return {"step": self.step, "here": dict(self.here), "listed": None if self.listed is None else {**self.listed}}

    @classmethod
    def from_message(cls, message: object) -> StepFiles:
        """Raises ValueError for what is no step's files: this comes from the wire."""
        if not isinstance(message, dict) or not _is_count(message.get("step")):
            raise ValueError("a step's files are no table")
        listed = message.get("listed")
        return cls(message["step"], _files(message.get("here")), None if listed is None else _files(listed))


@dataclass(frozen=True)
class Held:
    """What a node says of the checkpoints in its output_dir, newest step first, and where it wants to begin."""

    directory: str = ""
    start: Start = "fresh"
    steps: Sequence[StepFiles] = field(default=())

    def to_message(self) -> dict[str, Any]:
        return {"directory": self.directory, "start": self.start, "steps": [one.to_message() for one in self.steps]}

    @classmethod
    def from_message(cls, message: object) -> Held:
        """Raises ValueError for what is none: this comes from the wire."""
        if not isinstance(message, dict) or not isinstance(message.get("steps"), list):
            raise ValueError("what it holds of checkpoints is no table")
        if len(message["steps"]) > NEWEST_STEPS or message.get("start") not in ("fresh", "newest"):
            raise ValueError("what it holds of checkpoints is out of bounds")
        steps = tuple(StepFiles.from_message(one) for one in message["steps"])
        return cls(str(message.get("directory"))[:4096], message["start"], steps)


def held(checkpoints: Path, start: Start) -> Held:
    """What lies below `checkpoints` of the newest steps, committed or not."""
    found = sorted(
        [*commit.complete_checkpoints(checkpoints), *commit.incomplete_checkpoints(checkpoints)],
        key=commit.step_of,
        reverse=True,
    )
    committed = [path for path in found if (path / commit.MARKER).is_file()]
    # Without its marker a step is none, unless another node has the marker.
    chosen = [*committed, *(path for path in found if path not in committed)][:NEWEST_STEPS]
    return Held(str(checkpoints.parent.absolute()), start, tuple(_step_files(path) for path in chosen))


def refusal(nodes: Mapping[str, Held]) -> str | None:
    """Why these nodes must not start as they are: they would begin below a step that one of them has committed.

    `nodes`: name -> what it holds. None where all is well, as far as names and sizes tell.
    """
    committed = {step.step: step for node in nodes.values() for step in node.steps if step.listed is not None}
    if not committed:
        return None
    newest = committed[max(committed)]
    if any(node.start == "fresh" for node in nodes.values()):
        return (
            f"this run would begin at step 0, but there are checkpoints of an earlier run:\n{_who_has(nodes)}\n"
            "  go on from them with --auto-resume-from-checkpoints true, or start anew in another --output-dir"
        )
    there = {name for node in nodes.values() for step in node.steps if step.step == newest.step for name in step.here}
    listed = newest.listed or {}
    lost = sorted(set(listed) - there)
    if not lost:
        return None
    return lost_files(newest.name, lost, len(listed), _who_has(nodes))


def lost_files(checkpoint: str, lost: Sequence[str], num_files: int, who_has: str = "") -> str:
    """The message for a committed checkpoint of which files are on no node's disk."""
    return (
        f"{checkpoint} is committed, but {len(lost)} of its {num_files} files are on no disk of these nodes: "
        + few(lost, _SHOWN)
        + (f"\n{who_has}" if who_has else "")
        + "\n  beginning below it would give up steps that may be safe on a disk that is not here. Start on all nodes "
        "that took part, each with the output_dir that it had; or, if those files are gone for good, say so: name an "
        "older checkpoint with --resume-from-checkpoint, or begin anew in another --output-dir"
    )


def _who_has(nodes: Mapping[str, Held]) -> str:
    lines = []
    for name, node in nodes.items():
        steps = [f"{one.name} ({_share(one)})" for one in node.steps if one.listed is not None or one.here]
        lines.append(f"  {name}: {', '.join(steps) if steps else 'no checkpoint'} in {node.directory}")
    return few(lines, 2 * _SHOWN, between="\n", rest="\n  and {:,} more nodes")


def _share(step: StepFiles) -> str:
    if step.listed is None:
        return f"not committed here; {len(step.here)} files"
    has = sum(1 for name in step.listed if name in step.here)
    return "whole" if has == len(step.listed) else f"{has} of {len(step.listed)} files"


def _step_files(checkpoint: Path) -> StepFiles:
    try:
        listed = {name: int(digest["bytes"]) for name, digest in commit.read_marker(checkpoint)["files"].items()}
    except (CheckpointError, KeyError, TypeError, ValueError):
        listed = None  # a damaged marker counts as none; another node may have it whole
    here = {}
    for folder, _, names in os.walk(checkpoint):
        for name in names:
            path = Path(folder, name)
            if path.name != commit.MARKER and path.is_file():
                here[path.relative_to(checkpoint).as_posix()] = path.stat().st_size
    return StepFiles(commit.step_of(checkpoint), here, listed)


def _files(table: object) -> dict[str, int]:
    if not isinstance(table, dict) or len(table) > _MOST_FILES:
        raise ValueError("files are no table of sizes")
    if not all(isinstance(name, str) and _is_count(size) for name, size in table.items()):
        raise ValueError("files are no table of sizes")
    return table


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
