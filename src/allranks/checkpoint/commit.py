"""When is a checkpoint a checkpoint? When its COMPLETE file exists and every file that it lists is as it says.

COMPLETE is written last, by rename, after everything else has reached the disk. It holds size and SHA-256 of every
other file, so that a save cut off half-way, a truncated file and a flipped byte are all told from a good checkpoint.
It names files of its own folder only: nothing else is read, sent or written for a checkpoint, whoever wrote it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from allranks import durable
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


def commit(
    checkpoint: Path, files: Mapping[str, Mapping[str, Any]], *, synced: Collection[str] = (), **facts: Any
) -> None:
    """Write COMPLETE: `files` maps paths relative to the checkpoint to their `digest`.

    All of them that are here are brought to the disk before, but those that are `synced`: that their writers did.
    """
    durable.sync_files(checkpoint, set(files) - set(synced))
    write_marker(checkpoint, {"version": 1, **facts, "files": dict(sorted(files.items()))})


def write_marker(checkpoint: Path, marker: Mapping[str, Any]) -> None:
    """Put `marker` in place as COMPLETE, for good. What it lists has to be on the disk already."""
    durable.write(checkpoint / MARKER, json.dumps(marker, indent=1))
    durable.sync_folder(checkpoint.parent)


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """The contents of COMPLETE. Raises CheckpointError where there is none, or none that can be read.

    So is one that names anything outside of the checkpoint: a path to it would be read, sent or written.
    """
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        for name, recorded in marker["files"].items():
            if not is_inner_name(name):
                raise CheckpointError(
                    f"{checkpoint}/{MARKER} is damaged: it names {name!r}, which is no file of this checkpoint"
                )
            if not (isinstance(recorded["bytes"], int) and isinstance(recorded["sha256"], str)):
                raise TypeError
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} is not complete: it has no {MARKER} file, so its save was cut off"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{checkpoint}/{MARKER} is damaged: it is not the JSON that allranks wrote") from None
    return marker


def verify(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, one line a file; an empty list means that it is as it was written.

    So is a link that leads out of the folder and is not listed: an export would copy what it names.
    """
    try:
        files = read_marker(checkpoint)["files"]
    except CheckpointError as error:
        return [str(error)]
    _, problems = verify_files(checkpoint, files)
    for path in checkpoint.rglob("*"):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_symlink() and name not in files and leads_out(checkpoint, name):
            problems[name] = _leads_out(path)
    return list(problems.values())


def verify_files(
    checkpoint: Path, files: Mapping[str, Mapping[str, Any]], *, part: int = 0, parts: int = 1
) -> tuple[list[str], dict[str, str]]:
    """Compare files with their recorded digests: the names of the sound ones, and what is wrong with each other.

    `part` of `parts` checks every parts-th file only, so that ranks can share the reading between them.
    """
    sound, problems = [], {}
    for name, expected in sorted(files.items())[part::parts]:
        problem = _problem(checkpoint, name, expected)
        if problem is None:
            sound.append(name)
        else:
            problems[name] = problem
    return sound, problems


def is_inner_name(name: object) -> bool:
    """Whether `name` is a path as COMPLETE spells them: relative, without steps upwards, and not COMPLETE itself."""
    return (
        isinstance(name, str)
        and name not in ("", MARKER)
        and "\0" not in name
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def leads_out(checkpoint: Path, name: str) -> bool:
    """Whether symbolic links on the way to a file of the checkpoint end outside of the checkpoint's folder."""
    path = checkpoint / name
    try:
        return _is_loop(path) or not path.resolve().is_relative_to(checkpoint.resolve())
    except (OSError, RuntimeError):
        return True


def _is_loop(path: Path) -> bool:
    """Whether links on the way to `path` lead in a circle; from Python 3.13 on `resolve` says nothing of that."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def way_for(checkpoint: Path, name: str) -> Path:
    """Where to write a file of the checkpoint: links on the way are removed (not what they name), folders made."""
    path = checkpoint / name
    for place in (*reversed(path.relative_to(checkpoint).parents), Path(name)):
        if (link := checkpoint / place) != checkpoint and link.is_symlink():
            durable.remove_file(link)
    durable.make_folders(path.parent)
    return path


def _problem(checkpoint: Path, name: str, expected: Mapping[str, Any]) -> str | None:
    path = checkpoint / name
    if leads_out(checkpoint, name):
        return _leads_out(path)
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


def _leads_out(path: Path) -> str:
    return f"{path}: a symbolic link leads out of the checkpoint's folder; move the file itself to its place"


def prune(
    checkpoints: Path,
    keep: int,
    protected: Iterable[Path] = (),
    failed: Callable[[Path, OSError], None] = lambda path, error: None,
) -> list[Path]:
    """Remove the oldest committed checkpoints until `keep` are left; those in `protected` stay whatever their age.

    One that cannot be removed stays whole, `failed` is told of it, and the others go all the same. Returns the removed.
    """
    complete = complete_checkpoints(checkpoints)
    kept = set(protected)
    removable = [path for path in complete if path not in kept]
    surplus = len(complete) - max(keep, len(kept), 1)
    return [path for path in removable[::-1][: max(surplus, 0)] if _removed(path, failed)]


def sweep(checkpoints: Path, before: int, failed: Callable[[Path, OSError], None]) -> None:
    """Remove what is left of saves of steps below `before` that never committed; `failed` is told of what stays."""
    for path in incomplete_checkpoints(checkpoints):
        if step_of(path) < before:
            _removed(path, failed)


def _removed(checkpoint: Path, failed: Callable[[Path, OSError], None]) -> bool:
    try:
        remove(checkpoint)
    except OSError as error:
        failed(checkpoint, error)
        return False
    return True


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint. It loses its marker for good before its files: cut off half-way, nothing looks whole.

    Raises OSError where that cannot be, and leaves the checkpoint as it was unless some of it is gone already. A
    symbolic link is left, with what it names: that lies elsewhere, and may be somebody else's.
    """
    if checkpoint.is_symlink():
        raise OSError(errno.EPERM, f"it is a symbolic link to {checkpoint.readlink()}, which is not removed")
    _refuse_locked_folders(checkpoint)
    marker = checkpoint / MARKER
    content = marker.read_bytes() if marker.is_file() else None
    durable.remove_file(marker)
    before = _files_in(checkpoint)
    try:
        shutil.rmtree(checkpoint)
    except OSError:
        if content is not None and checkpoint.is_dir() and _files_in(checkpoint) == before:
            durable.write(marker, content)
        raise


def _refuse_locked_folders(checkpoint: Path) -> None:
    """Raise PermissionError for a folder out of which nothing can be removed, before anything is."""
    for folder in (checkpoint.parent, *(Path(found) for found, _, _ in os.walk(checkpoint))):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to remove anything in {folder}")


def _files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))
