"""What a disk may hold after a power cut at any moment: a record of the syncs, renames, removals and new folders.

The rules are those of fsync(2), and as hard as any file system makes them: bytes that were not synced since they were
written may be cut short or gone; a change of a folder that was not synced since may or may not have reached the disk,
each by itself. What was synced is there.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_CHANGES = ("fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir")
_MIXED_STATES = 2

Node = bytes | dict[str, int]
"""A file's bytes, or a folder's names with the numbers of what they name."""


@dataclass
class Disk:
    """`on_disk`: what is certainly there, by number (inode); `operations`: what was recorded, in order."""

    top: Path
    scratch: Path
    check: Callable[[Path], None]
    on_disk: dict[int, Node] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    busy: bool = False
    _held: dict[int, int] = field(default_factory=dict)

    def cut(self) -> None:
        """Build what could be left if the power went now, in several ways, and check each."""
        live = self.read()
        chance = random.Random(len(self.operations))

        def either() -> bool:
            return chance.random() < 0.5

        # Nothing that was not synced; all names and no bytes, as journals of names alone do; and mixtures.
        for number, keeps in enumerate([lambda: False, lambda: True, *[either] * _MIXED_STATES]):
            place = self.scratch / f"{len(self.operations)}-{number}"
            self._build(self.top.stat().st_ino, place, live, keeps)
            try:
                self.check(place)
            except AssertionError as error:
                # Told at the end: what is under test may take it for a failure of the disk, and go on.
                self.faults.append(f"before operation {len(self.operations)}: {error}")
            shutil.rmtree(place)

    def cut_now(self) -> None:
        """`cut`, between changes."""
        self.busy = True
        self.cut()
        self.busy = False

    def _build(self, inode: int, place: Path, live: dict[int, Node], keeps: Callable[[], bool]) -> None:
        now, synced = live.get(inode), self.on_disk.get(inode)
        if isinstance(now, bytes) or isinstance(synced, bytes):
            if isinstance(synced, bytes) and now in (synced, None):
                place.write_bytes(synced)
            else:
                place.write_bytes(now[: len(now) // 2] if isinstance(now, bytes) and keeps() else b"")
            return
        place.mkdir(parents=True)
        old = synced or {}
        new = now if now is not None else old
        for name in sorted({*old, *new}):
            found = new.get(name) if old.get(name) == new.get(name) or keeps() else old.get(name)
            if found is not None:
                self._build(found, place / name, live, keeps)

    def read(self) -> dict[int, Node]:
        """All that programs see below `top`."""
        found: dict[int, Node] = {}
        for folder, folders, files in os.walk(self.top):
            inside = {name: Path(folder, name) for name in (*folders, *files)}
            found[self._number(Path(folder))] = {name: self._number(path) for name, path in inside.items()}
            found |= {self._number(inside[name]): inside[name].read_bytes() for name in files}
        return found

    def _number(self, path: Path) -> int:
        # Held open, so that a number never means another file later.
        inode = path.stat().st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_PATH)
        return inode

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)


@contextmanager
def recorded(top: Path, scratch: Path, check: Callable[[Path], None]) -> Iterator[Disk]:
    """Within this, cut the power before every change below `top`, and at the end: `check` gets what is left of `top`.

    Raises AssertionError at the end, with the record, if any of them did. What is there at the beginning counts as
    synced.
    """
    disk = Disk(top, scratch, check)
    disk.on_disk = disk.read()

    def recording(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if disk.busy:
                return real(*args, **kwargs)
            disk.busy = True  # the record's own changes are none
            try:
                disk.cut()
                done = real(*args, **kwargs)
                if name == "fsync":
                    path = Path(f"/proc/self/fd/{args[0]}").readlink()
                    inode = os.fstat(args[0]).st_ino
                    disk.operations.append(f"fsync {path}")
                    if inode in (live := disk.read()):
                        disk.on_disk[inode] = live[inode]
                else:
                    disk.operations.append(" ".join([name, *map(str, args)]))
                return done
            finally:
                disk.busy = False

        return change

    with pytest.MonkeyPatch.context() as patched:
        for name in _CHANGES:
            patched.setattr(os, name, recording(name, getattr(os, name)))
        try:
            yield disk
            disk.cut_now()
            assert not disk.faults, "\n".join([*disk.operations, *disk.faults[:4]])
        finally:
            disk.close()
