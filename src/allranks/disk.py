"""What a disk refuses, told as one error: what could not be done, at which path on which node, how much room there is,
and what to do. For a full disk, a used-up quota, a read-only file system, a folder that vanished, and their kind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from allranks.errors import AllranksError, DiskError, RefusedError
from allranks.listing import si_bytes

_ROOM = "free some room there, or choose another disk"
_BACK = "see that it is mounted and that nobody removes it, then start again"
_KERNEL = "look at the kernel's log (dmesg) and at the disk or its server, then start again"
_RIGHT = "give this user the right to write there, or choose another folder"
# errno -> (what it means, what helps)
_MEANINGS = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the quota is used up", _ROOM),
    errno.EFBIG: ("no file may grow that large", "raise the limit (`ulimit -f unlimited`), or choose another disk"),
    errno.EROFS: ("the file system is read-only", f"the kernel makes it so after an error: {_KERNEL}"),
    errno.EACCES: ("no permission", _RIGHT),
    errno.EPERM: ("not permitted", _RIGHT),
    errno.ENOENT: ("it is gone", _BACK),
    errno.ENOTDIR: ("a folder on the way is none", _BACK),
    errno.ESTALE: ("its server does not know it any more", _BACK),
    errno.ENOTCONN: ("its file system has gone", _BACK),
    errno.ENODEV: ("its device has gone", _BACK),
    errno.ENXIO: ("its device has gone", _BACK),
    errno.EIO: ("reading or writing failed", _KERNEL),
    errno.EREMOTEIO: ("reading or writing failed", _KERNEL),
    errno.EUCLEAN: ("the file system is damaged", f"have it checked (fsck); {_KERNEL}"),
}
_IS_FULL = {errno.ENOSPC, errno.EDQUOT}
# A missing program or a closed socket ends with these, too: a path must tell that it is about a disk.
_NEED_A_PATH = {
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EIO),
}
# Where a library hides the number in a text: Python's own, Rust's (safetensors, tokenizers) in two forms.
_NUMBER = re.compile(r"\[Errno (\d+)\]|os error (\d+)|\bOs \{ code: (\d+)")
# Where it knows only that less was written than should have been: numpy, and torch in two forms.
_TOO_LITTLE = re.compile(r"requested and \d+ written|inline_container\.cc|PytorchStreamWriter failed writing")
Needed = Callable[[], int | None] | int | None
_TRIED_BYTES = 4096  # a block: an empty file can be made on a full disk, too


@contextlib.contextmanager
def disk_told(
    doing: str, path: Path, *, needed_bytes: Needed = None, partial: Path | None = None, remedy: str = ""
) -> Iterator[None]:
    """Within, what a disk refuses is raised as DiskError: `doing` is what was tried, `path` where.

    `needed_bytes`: the room that it takes there, as far as that is known; a function is asked only then. `partial`: a
    folder that goes away if it comes to nothing: its bytes count as free. `remedy`: what helps here against a full
    disk, in place of general advice.
    """
    try:
        yield
    except AllranksError:
        raise
    except Exception as error:
        told = disk_error(error, doing, path, needed_bytes=needed_bytes, partial=partial, remedy=remedy)
        if told is None:
            raise
        raise told from error


def told_to_user(error: BaseException, doing: str) -> AllranksError | None:
    """`error` as one message without a traceback: itself if it is one, or what a disk refused while `doing` that."""
    return error if isinstance(error, AllranksError) else disk_error(error, doing)


def disk_error(
    error: BaseException,
    doing: str,
    path: Path | None = None,
    *,
    needed_bytes: Needed = None,
    partial: Path | None = None,
    remedy: str = "",
) -> DiskError | None:
    """The error to tell the user, or None where no disk is to blame. `path` counts where `error` names none."""
    refused = _refused(error, path)
    if refused is None:
        return None
    number, place = refused
    what, advice = _MEANINGS[number]
    if number in (errno.ENOENT, errno.ENOTDIR) and place is not None:
        what = f"{_first_missing(place)} is gone"
    host = socket.gethostname()
    where = f"{place} on {host}" if place is not None else f"on {host}"
    if number in _IS_FULL:
        needed = needed_bytes() if callable(needed_bytes) else needed_bytes
        where += _room_told(place, needed, _size(partial) if partial else 0)
        advice = remedy or advice
    return DiskError(f"{doing}: {what} ({os.strerror(number)}): {where}. {advice[0].upper()}{advice[1:]}", number, host)


def room(path: Path) -> tuple[int, int] | None:
    """Bytes that this user may still write at `path`, which need not be there yet, and the size of its file system.

    None where that is not known: some network and FUSE file systems do not tell.
    """
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(folder)
            return (usage.free, usage.total) if usage.total else None
    return None


def refuse_unwritable(folder: Path, key: str = "output_dir", option: str = "--output-dir") -> None:
    """Make `folder`, and prove that bytes can be written in it. Raises RefusedError, which names `key` and
    `option`."""
    trial = folder / f".writable-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            trial.write_bytes(bytes(_TRIED_BYTES))
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        place = _room_told(folder) if error.errno in _IS_FULL else ""
        raise RefusedError(
            f"{key}: {folder} cannot be written on {socket.gethostname()}: {error.strerror}{place}; choose another "
            f"with {option}"
        ) from None


def _room_told(place: Path | None, needed: int | None = None, reclaimed: int = 0) -> str:
    told = [f"{si_bytes(needed)} are needed there"] if needed is not None else []
    if place is not None and (num_files := _files_when_none_is_left(place)):
        told.append(
            f"it takes no further file, for all its {num_files:,} inodes are in use (df -i): remove small files"
        )
    elif place is not None and (found := room(place)) is not None:
        told.append(f"{si_bytes(found[0] + reclaimed)} of {si_bytes(found[1])} are free")
    return "".join(f"; {text}" for text in told)


def _files_when_none_is_left(path: Path) -> int:
    """How many files the file system at `path` holds, where it can hold no more; else 0."""
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            usage = os.statvfs(folder)
            return usage.f_files if usage.f_files and not usage.f_favail else 0
    return 0


def _size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found += path.lstat().st_blocks * 512
    return found


def _refused(error: BaseException, path: Path | None) -> tuple[int, Path | None] | None:
    """(errno, path) of the refusal that `error` is, came from, or holds in its text."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, OSError) and one.errno in _MEANINGS:
            named = Path(os.fsdecode(one.filename)) if isinstance(one.filename, str | bytes) else None
            # A name without a folder is of a program that was looked for.
            if (named is not None and named.parent != Path()) or (named is None and one.errno not in _NEED_A_PATH):
                return one.errno, named or path
    for one in chain:
        text = str(one)
        if isinstance(one, OSError) and one.errno is not None:
            continue
        for found in _NUMBER.findall(text):
            number = int(next(filter(None, found)))
            if number in _MEANINGS and number not in _NEED_A_PATH:
                return number, path
        if path is not None and _TOO_LITTLE.search(text) and (said := _what_the_disk_says(path)):
            return said, path
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop(0)
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, None if one.__suppress_context__ else one.__context__]


def _what_the_disk_says(path: Path) -> int | None:
    """Why nothing can be written at `path` just now, by trying; a disk without room for a block is full."""
    folder = next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), None)
    if folder is None:
        return errno.ENOENT
    trial = folder / f".trial-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with trial.open("wb") as file:
            file.write(bytes(_TRIED_BYTES))
    except OSError as error:
        return error.errno if error.errno in _MEANINGS else None
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
    return errno.ENOSPC  # less was written than should have been, and that has one cause


def _first_missing(place: Path) -> Path:
    missing = [folder for folder in (place, *place.absolute().parents) if not folder.exists()]
    return missing[-1] if missing else place
