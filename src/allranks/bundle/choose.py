"""Which files of a run go into its bundle, and how much of each; no link is followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from allranks.observe import RunDir

MAX_BYTES = 16 * 2**20
"""Of all files together, before they are packed."""
MAX_FILES = 4096
_RECORD_BYTES = 2**21
_LOG_BYTES = 2**18
_EVENTS_BYTES = 2**16
_MARGIN_BYTES = 2**15  # before what is kept of a file: a key or token must not lose its beginning, which tells it


@dataclass(frozen=True)
class Chosen:
    """A file by its path in the run, with the text of its end; `left_out` says why there is none."""

    path: str
    size: int = 0
    text: str = ""
    margin: int = 0
    """Signs of the text that are there only to know what follows."""
    is_cut: bool = False
    left_out: str = ""


def choose(run: RunDir) -> list[Chosen]:
    """The files, most important first, bounded in number and bytes; those left out say why."""
    chosen: list[Chosen] = []
    room = MAX_BYTES
    for path, most in _candidates(run):
        name = os.fsdecode(os.fsencode(path.relative_to(run.path))).encode("utf-8", "replace").decode()
        if len(chosen) >= MAX_FILES:
            chosen.append(Chosen("…", left_out=f"more than {MAX_FILES:,} files"))
            break
        if room <= 0:
            chosen.append(Chosen(name, left_out=f"the bundle has {MAX_BYTES // 2**20} MiB already"))
            continue
        one = _read(path, name, min(most, room))
        room -= len(one.text)
        chosen.append(one)
    return chosen


def _candidates(run: RunDir) -> Iterator[tuple[Path, int]]:
    for name in ("manifest", "preflight", "live", "proof", "certificate", "deepspeed"):
        path = getattr(run, name, None)
        if path is not None and os.path.lexists(path):
            yield path, _RECORD_BYTES
    for folder, most in (
        ("launch", _LOG_BYTES),
        ("evidence", _LOG_BYTES),
        ("logs", _LOG_BYTES),
        ("events", _EVENTS_BYTES),
        ("smoke/logs", _EVENTS_BYTES),
    ):
        yield from ((path, most) for path in _files(run.path / folder))


def _files(top: Path) -> Iterator[Path]:
    if any(part.is_symlink() for part in (top, top.parent) if part.name in ("smoke", top.name)):
        yield top  # is left out, and said to be
        return
    for folder, folders, names in os.walk(top):
        folders.sort()
        links = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name) for name in sorted([*names, *links]))


def _read(path: Path, name: str, most: int) -> Chosen:
    try:
        if path.is_symlink():
            return Chosen(name, left_out="it is a link")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                return Chosen(name, left_out="it is no file")
            start = max(0, state.st_size - most - _MARGIN_BYTES)
            file.seek(start)
            content = file.read(most + _MARGIN_BYTES)
    except OSError as error:
        return Chosen(name, left_out=f"it cannot be read: {error.strerror}")
    if b"\0" in content[:8192].strip(b"\0"):
        return Chosen(name, state.st_size, left_out="it is no text")
    if start > 0:
        content = content.partition(b"\n")[2]  # a line without its beginning
    margin = max(0, len(content) - most) if start > 0 else 0
    kept = content[margin:].decode("utf-8", "replace")
    before = content[:margin].decode("utf-8", "replace")
    return Chosen(name, state.st_size, before + kept, len(before), start > 0)
