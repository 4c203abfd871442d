"""The folder of a prepared data set: found whole or not at all, whoever else is writing.

A data set is built in a temporary folder of its own and renamed into place when its manifest is written, so that a
crash leaves nothing that could be taken for prepared. On one machine a file lock makes the others wait instead of doing
the work again; on a network disk without locks they do it again, and the first to finish wins.
"""

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from allranks import durable
from allranks.data.blocks import BlockSet
from allranks.data.fingerprint import FORMAT_VERSION
from allranks.disk import disk_told, refuse_unwritable
from allranks.errors import DataError

Report = Callable[[str], None]
_POLL_SECONDS = 0.2
_SPLITS = ("train", "eval")
_MAKE_ROOM = "free some room there, or set dataset_prepared_path to a folder on a larger disk"


@dataclass(frozen=True)
class Prepared:
    """A prepared data set, opened by memory map. `stats` says what became of the records."""

    path: Path
    fingerprint: str
    train: BlockSet
    eval: BlockSet | None
    stats: dict


def folder_of(prepared_path: str, fingerprint: str) -> Path:
    """Where the data set with this fingerprint is, or will be."""
    return Path(prepared_path).expanduser() / fingerprint[:16]


def open_prepared(folder: Path, fingerprint: str, report: Report) -> Prepared | None:
    """The data set in `folder`; None if it is not there or not whole (a file missing or of another size)."""
    manifest_file = folder / "manifest.json"
    if not manifest_file.is_file():
        return None
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT_VERSION or manifest["fingerprint"] != fingerprint:
            raise ValueError("its manifest is of another data set")
        for name, size in manifest["files"].items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} has {(folder / name).stat().st_size} bytes instead of {size}")
        sets = {
            split: BlockSet.open(folder / split, manifest["sequence_len"][split])
            for split in _SPLITS
            if split in manifest["splits"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        report(f"prepared data set {folder} is damaged ({error}) and will be made again")
        return None
    return Prepared(folder, fingerprint, sets["train"], sets.get("eval"), manifest["stats"])


def write_manifest(folder: Path, fingerprint: str, sequence_len: dict[str, int], stats: dict) -> None:
    """Write the manifest, last: it names every file with its size, and the most tokens in a block of each split."""
    files = [path for split in _SPLITS for path in sorted((folder / split).glob("*.npy"))]
    manifest = {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "sequence_len": sequence_len,
        "splits": [split for split in _SPLITS if (folder / split).is_dir()],
        "stats": stats,
        "files": {str(path.relative_to(folder)): path.stat().st_size for path in files},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed to it at the end; removed on failure.

    If somebody else was faster, theirs stays. What stands there damaged is replaced.
    """
    temporary = folder.parent / f".{folder.name}.building-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with disk_told("the prepared data is not written", temporary, partial=temporary, remedy=_MAKE_ROOM):
            temporary.mkdir(parents=True)
            yield temporary
            _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def lock(folder: Path, report: Report) -> Iterator[None]:
    """Hold the lock of `folder` as long as it is being made. Where the disk knows no locks, goes on without."""
    import fcntl

    refuse_unwritable(folder.parent, "dataset_prepared_path", "--dataset-prepared-path")
    file = (folder.parent / f".{folder.name}.lock").open("a+", encoding="utf-8")
    with file:
        locked = told = False
        while not locked:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                if not told:
                    file.seek(0)
                    report(f"waiting for {file.read().strip() or 'another process'}, which prepares the same data")
                    told = True
                time.sleep(_POLL_SECONDS)
            except OSError:
                break
        if locked:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            for leftover in folder.parent.glob(f".{folder.name}.building-{socket.gethostname()}-*"):
                shutil.rmtree(leftover, ignore_errors=True)  # of a process of this machine that was killed
        yield


def _publish(temporary: Path, folder: Path) -> None:
    durable.sync_all(temporary)
    for _ in range(2):
        try:
            durable.rename(temporary, folder)
            return
        except OSError:
            if not folder.exists():
                raise
        manifest = json.loads((temporary / "manifest.json").read_text(encoding="utf-8"))
        if open_prepared(folder, manifest["fingerprint"], lambda _: None) is not None:
            return
        damaged = folder.with_name(f".{folder.name}.damaged-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    raise DataError(f"cannot put the prepared data set into place at {folder}: something else keeps appearing there")
