"""A folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from allranks import durable
from allranks.disk import disk_told
from allranks.errors import UsageError


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `out` to write into; on success it becomes `out`, on failure it goes away.

    `out` is on the disk when it appears: a power cut leaves it whole or not there.

    `replace`: an `out` that is there already changes places with the new one once that is whole, and is removed then:
    at every moment one of the two is there. Its files can be read by whoever the umask lets read new files.

    Raises:
        UsageError: `out` is a file, or is not empty, or cannot be written.
        DiskError: the disk is full, or fails, while it is written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, where a folder is to be written: give another one, or remove it first")
    if not replace and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; give another folder, or remove it first")
    temporary = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None
    try:
        with disk_told(f"{out} is not written", out, partial=temporary):
            yield temporary
            _readable_as_made(temporary)
            durable.sync_all(temporary)
            if out.is_dir() and any(out.iterdir()):
                durable.exchange(temporary, out)
            else:
                durable.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _readable_as_made(folder: Path) -> None:
    """Give files the mode of new ones: some libraries write them for their owner only, and copies keep theirs."""
    allowed = folder.stat().st_mode  # the umask has been at work on it
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(allowed & (0o777 if path.is_dir() else 0o666))
