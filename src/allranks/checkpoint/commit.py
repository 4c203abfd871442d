"""When is a checkpoint a checkpoint? When its COMPLETE file exists and every file that it lists is as it says.

COMPLETE is written last, by rename, after everything else has reached the disk. It holds size and SHA-256 of every
other file, so that a save cut off half-way, a truncated file and a flipped byte are all told from a good checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from allranks.errors import CheckpointError, UsageError

MARKER = "COMPLETE"
_STEP_NAME = re.compile(r"step-(\d{8,})")


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    match = _STEP_NAME.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint} is not a checkpoint directory: its name must be like step-00000100")
    return int(match[1])


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """The committed checkpoints under `checkpoints`, newest first. Contents are not read: see `verify`."""
    return [path for path in _step_directories(checkpoints) if (path / MARKER).is_file()]


def incomplete_checkpoints(checkpoints: Path) -> list[Path]:
    """Directories of saves that never committed, newest first."""
    return [path for path in _step_directories(checkpoints) if not (path / MARKER).is_file()]


def _step_directories(checkpoints: Path) -> list[Path]:
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if _STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def refuse_earlier_run(run_dir: Path, complete: Sequence[str]) -> None:
    """Raise UsageError if a fresh run would write between the `complete` checkpoints (names, newest first) of an
    earlier one."""
    if complete:
        raise UsageError(
            f"output_dir: {run_dir} holds checkpoints of an earlier run (newest: {complete[0]}). Go on from them "
            "with --auto-resume-from-checkpoints true, or start anew in another --output-dir"
        )


def digest(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, as COMPLETE records them."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def commit(checkpoint: Path, files: Mapping[str, Mapping[str, Any]], **facts: Any) -> None:
    """Write COMPLETE: `files` maps paths relative to the checkpoint to their `digest`."""
    write_marker(checkpoint, {"version": 1, **facts, "files": dict(sorted(files.items()))})


def write_marker(checkpoint: Path, marker: Mapping[str, Any]) -> None:
    """Put `marker` in place as COMPLETE, by rename, once it is on the disk."""
    temporary = checkpoint / f".{MARKER}.tmp"
    with temporary.open("w") as file:
        json.dump(marker, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(checkpoint / MARKER)
    directory = os.open(checkpoint, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """The contents of COMPLETE. Raises CheckpointError where there is none, or none that can be read."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text())
        if not isinstance(marker["files"], dict):
            raise TypeError
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} is not complete: it has no {MARKER} file, so its save was cut off"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{checkpoint}/{MARKER} is damaged: it is not the JSON that allranks wrote") from None
    return marker


def verify(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, one line a file; an empty list means that it is as it was written."""
    try:
        files = read_marker(checkpoint)["files"]
    except CheckpointError as error:
        return [str(error)]
    _, problems = verify_files(checkpoint, files)
    return list(problems.values())


def verify_files(
    checkpoint: Path, files: Mapping[str, Mapping[str, Any]], *, part: int = 0, parts: int = 1
) -> tuple[list[str], dict[str, str]]:
    """Compare files with their recorded digests: the names of the sound ones, and what is wrong with each other.

    `part` of `parts` checks every parts-th file only, so that ranks can share the reading between them.
    """
    sound, problems = [], {}
    for name, expected in sorted(files.items())[part::parts]:
        problem = _problem(checkpoint / name, expected)
        if problem is None:
            sound.append(name)
        else:
            problems[name] = problem
    return sound, problems


def _problem(path: Path, expected: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path}: {size} bytes, expected {expected['bytes']}"
        if digest(path)["sha256"] != expected["sha256"]:
            return f"{path}: its bytes changed since it was written (SHA-256 differs)"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return None


def prune(checkpoints: Path, keep: int, protected: Iterable[Path] = ()) -> list[Path]:
    """Remove the oldest committed checkpoints until `keep` are left; those in `protected` stay whatever their age.

    A checkpoint loses its marker before its files, so that a removal cut off half-way leaves nothing that looks whole.
    """
    complete = complete_checkpoints(checkpoints)
    kept = set(protected)
    removable = [path for path in complete if path not in kept]
    surplus = len(complete) - max(keep, len(kept), 1)
    removed = removable[::-1][: max(surplus, 0)]
    for path in removed:
        remove(path)
    return removed


def remove(checkpoint: Path) -> None:
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)
