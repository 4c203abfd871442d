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


def write(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`, by rename: readers, also those after a power cut, see the old file or the new one."""
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
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename(source: Path, target: Path) -> None:
    """Rename for good; `source` has to be on the disk already. In place of a file `target`, if there is one."""
    source.replace(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


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
    finally:
        os.close(descriptor)
