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
# gzip, bzip2, xz, zstd, lz4, 7z, zip, lzma, compress; zlib; pickles of protocol 2 to 5.
_MAGIC = (
    *(
        b"\x1f\x8b",
        b"BZh",
        b"\xfd7zXZ",
        b"\x28\xb5\x2f\xfd",
        b"\x04\x22\x4d\x18",
        b"7z\xbc\xaf",
        b"PK\x03\x04",
        b"\x5d\0\0",
    ),
    *(b"\x1f\x9d", b"x\x01", b"x\x5e", b"x\x9c", b"x\xda"),
    *(bytes([0x80, protocol]) for protocol in range(2, 6)),
)
_CONTROLS = [bytes([sign]) for sign in range(32) if sign not in b"\t\n\r\x08\x0c\x1b"]
_WRONG_PART = 0.1  # a log with some Latin-1 is text
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


def choose(run: RunDir, max_bytes: int | None = None) -> list[Chosen]:
    """The files, most important first, bounded in number and bytes; those left out say why."""
    chosen: list[Chosen] = []
    max_bytes = MAX_BYTES if max_bytes is None else max_bytes
    room = max_bytes
    for path, most in _candidates(run):
        name = os.fsdecode(os.fsencode(path.relative_to(run.path))).encode("utf-8", "replace").decode()
        if len(chosen) >= MAX_FILES:
            chosen.append(Chosen("…", left_out=f"more than {MAX_FILES:,} files"))
            break
        if room <= 0:
            chosen.append(Chosen(name, left_out=f"the bundle has {max_bytes / 2**20:.3g} MiB already"))
            continue
        one = _read(path, name, min(most, room))
        room -= len(one.text)
        chosen.append(one)
    return chosen


def _candidates(run: RunDir) -> Iterator[tuple[Path, int]]:
    for name in ("manifest", "preflight", "live", "proof", "failures", "certificate", "deepspeed"):
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
    if _is_no_text(content):
        return Chosen(name, state.st_size, left_out="it is no text")
    if start > 0:
        content = content.partition(b"\n")[2]  # a line without its beginning
    margin = max(0, len(content) - most) if start > 0 else 0
    kept = content[margin:].decode("utf-8", "replace")
    before = content[:margin].decode("utf-8", "replace")
    return Chosen(name, state.st_size, before + kept, len(before), start > 0)


def _is_no_text(content: bytes) -> bool:
    """What is packed or pickled may hold anything, where nothing of it can be looked for."""
    head = content[:8192]
    if content.startswith(_MAGIC) or b"\0" in head.strip(b"\0"):
        return True
    wrong = head.decode("utf-8", "replace").count("\ufffd") + sum(head.count(sign) for sign in _CONTROLS)
    return wrong > _WRONG_PART * len(head)
