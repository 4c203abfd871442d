"""Writes that a power cut cannot undo: what somebody may rely on is on the disk before they can see it.

A file's bytes reach the disk by fsync of the file; its name, a rename and a removal by fsync of the folder that they
are in (fsync(2)). Without that, a file system may keep a rename and lose the bytes of what was renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

# What file systems answer that cannot sync a folder, network and FUSE ones among them. They take care of names
# themselves or cannot; PostgreSQL's fsync_fname (src/common/file_utils.c) goes on after these, too.
_CANNOT_SYNC_FOLDERS = {
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EBADF),
    *(errno.EISDIR, errno.EACCES),
}
# linux/fcntl.h and linux/fs.h; what file systems and kernels without it answer.
_HERE, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def write(path: Path, content: str | bytes, *, make_parents: bool = False) -> None:
    """Put `content` at `path`, by rename: readers, also those after a power cut, see the old file or the new one."""
    if make_parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which is put at `path` at the end as `write` does; if it comes to none, it goes away."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that fails does not say where
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def rename(source: Path, target: Path) -> None:
    """Rename for good; `source` has to be on the disk already. In place of a file `target`, if there is one."""
    source.replace(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def exchange(one: Path, other: Path) -> None:
    """Give two folders of one folder each other's names for good; what is in them has to be on the disk already.

    In one operation where system and file system can (renameat2 with RENAME_EXCHANGE, Linux 3.15). Where they cannot,
    `other` stands aside for a moment under a name of its own; should the power go just then, both are still there.
    """
    if not _exchanged(one, other):
        aside = other.with_name(f".{other.name}.{os.getpid()}.before")
        other.rename(aside)
        try:
            rename(one, other)
        except OSError:
            aside.rename(other)
            raise
        aside.rename(one)
    sync_folder(other.parent)


def _exchanged(one: Path, other: Path) -> bool:
    import ctypes  # only where folders change places: the command line answers sooner

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # glibc 2.28, musl 1.2.6
        return False
    if libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def remove_file(path: Path) -> None:
    """Remove a file for good, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


def make_folders(path: Path) -> None:
    """Make a folder and those above it for good, as far as they are missing."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def sync_files(top: Path, names: Iterable[str]) -> None:
    """Bring files below `top` to the disk, and every folder from theirs up to `top`; those not here are passed over."""
    folders = {top}
    for path in sorted(top / name for name in names):
        with contextlib.suppress(FileNotFoundError):
            _sync(path)
            folders.update(folder for folder in path.parents if folder.is_relative_to(top))
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        sync_folder(folder)


def sync_all(top: Path) -> None:
    """Bring a folder to the disk with everything in it."""
    for folder, _, names in os.walk(top, topdown=False):
        for name in names:
            if not (path := Path(folder, name)).is_symlink():
                _sync(path)
        sync_folder(Path(folder))


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where its file system can do that."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
