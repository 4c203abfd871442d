"""How somebody at a terminal asks a run's launcher where all ranks are: a file each in OUTPUT_DIR/evidence/requests.

A request says for how long ranks may be waited for, and nothing else: no process, no path. Whatever lies in the folder
can only make the launcher look at its own run's ranks, once for all who ask at a time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allranks.errors import AllranksError

VERSION = 1
MIN_SECONDS, MAX_SECONDS = 1.0, 60.0
_REQUEST = re.compile(r"([0-9a-f]{32})\.json")
_LEFT = re.compile(r"\.?[0-9a-f]{32}\.answer|\.[0-9a-f]{32}\.json")
_REQUEST_BYTES = 1024
_ANSWER_BYTES = 64 * 2**20
_MOST_ENTRIES = 1000  # of the folder that are looked at
_MOST_REQUESTS = 16  # that are answered at once
_UNREAD_SECONDS = 60.0  # until an answer is removed that nobody has fetched
_TAKEN_SECONDS = 45.0  # a disk that nodes share may show a new file only so much later (NFS: acdirmax)
_ANSWERED_SECONDS = MAX_SECONDS + 30.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Request:
    """`name` is drawn by whoever asks."""

    name: str
    seconds: float


class NoLauncher(AllranksError):
    """Why no launcher of the run can be asked."""


def requests_folder(output_dir: Path) -> Path:
    """Where requests are put, and answered: it is there while a launcher takes them."""
    return output_dir / "evidence" / "requests"


def ask_launcher(output_dir: Path, *, seconds: float, no_launcher: Callable[[], str | None]) -> dict[str, Any]:
    """What all nodes tell of their ranks: `summaries` as `gather_node` makes them, and `silent`, the nodes that do not
    answer. Raises NoLauncher.

    `no_launcher` says why none would answer, as far as can be seen; it is asked again while an answer is waited for.
    """
    if (why := no_launcher()) is not None:
        raise NoLauncher(why)
    name = secrets.token_hex(16)
    try:
        with _opened(requests_folder(output_dir)) as folder:
            _put(folder, f"{name}.json", json.dumps({"version": VERSION, "seconds": seconds}).encode())
            try:
                return _answer(folder, name, no_launcher)
            finally:
                for left in (f"{name}.json", f"{name}.answer"):
                    with contextlib.suppress(OSError):
                        os.unlink(left, dir_fd=folder)
    except FileNotFoundError:
        raise NoLauncher("its launcher takes no requests, as under Ray") from None
    except OSError as error:
        raise NoLauncher(f"its launcher cannot be asked: {requests_folder(output_dir)}: {error.strerror}") from None


def _answer(folder: int, name: str, no_launcher: Callable[[], str | None]) -> dict[str, Any]:
    began = looked = time.monotonic()
    is_taken = False
    while True:
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        if _exists(folder, f"{name}.answer"):
            return _checked(_read(folder, f"{name}.answer", _ANSWER_BYTES))
        if not is_taken and not _exists(folder, f"{name}.json"):
            is_taken, began = True, now
        if now - looked >= 1.0:
            looked = now
            if (why := no_launcher()) is not None:
                raise NoLauncher(why)
        if now - began > (_ANSWERED_SECONDS if is_taken else _TAKEN_SECONDS):
            raise NoLauncher(f"its launcher gave no answer within {now - began:.0f} s")


def _checked(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(content)
        if isinstance(said, dict) and said.get("version") == VERSION and isinstance(said.get("summaries"), list):
            silent = said.get("silent")
            return {
                "summaries": [one for one in said["summaries"] if isinstance(one, dict)],
                "silent": [str(one) for one in silent] if isinstance(silent, list) else [],
            }
    raise NoLauncher("its launcher's answer cannot be read")


class RequestFolder:
    """The launcher's side."""

    def __init__(self, output_dir: Path) -> None:
        self._path = requests_folder(output_dir)
        self._answered: dict[str, float] = {}
        with contextlib.suppress(OSError), self._open() as folder:
            for name in _names(folder):  # of whoever was killed
                if _LEFT.fullmatch(name):
                    _remove(folder, name)

    def take(self) -> list[Request]:
        """The requests that have come, which are removed with that; what is none, but has the name of one, goes, too.
        Of several launchers on one disk one takes a request. Raises OSError."""
        taken: list[Request] = []
        with self._open() as folder:
            now = time.monotonic()
            for name, since in list(self._answered.items()):
                if now - since > _UNREAD_SECONDS:
                    _remove(folder, f"{name}.answer")
                    del self._answered[name]
            for entry in _names(folder):
                found = _REQUEST.fullmatch(entry)
                if found is None or len(taken) >= _MOST_REQUESTS:
                    continue
                seconds = _seconds(folder, entry)
                if _remove(folder, entry) and seconds is not None:
                    taken.append(Request(found[1], seconds))
        return taken

    def answer(
        self, requests: Sequence[Request], summaries: Sequence[Mapping[str, Any]], silent: Sequence[str]
    ) -> None:
        """Give all of them the same answer; of very many ranks, those of the first nodes. Raises OSError."""
        texts, size, silent = [], 0, list(silent)
        for one in summaries:
            text = json.dumps(one)
            size += len(text) + 2
            if size < _ANSWER_BYTES - 2**20:
                texts.append(text)
            else:
                silent.append(f"node {one.get('node')} (its answer has no room here)")
        content = (
            f'{{"version": {VERSION}, "silent": {json.dumps(silent)}, "summaries": [{", ".join(texts)}]}}'.encode()
        )
        with self._open() as folder:
            for request in requests:
                _put(folder, f"{request.name}.answer", content)
                self._answered[request.name] = time.monotonic()

    def close(self) -> None:
        """No more requests are taken; an answer that has not been fetched stays for who asked."""
        with contextlib.suppress(OSError):
            self._path.rmdir()
            self._path.parent.rmdir()  # where there was nothing else to keep

    def _open(self) -> contextlib.AbstractContextManager[int]:
        for path in (self._path.parent, self._path):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o777 if path != self._path else 0o700)
        return _opened(self._path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A folder itself and no link to another: all names below are of what lies directly in it."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for _, entry in zip(range(_MOST_ENTRIES), entries, strict=False))


def _seconds(folder: int, name: str) -> float | None:
    """What a request asks; None for what is no request."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        said = json.loads(_read(folder, name, _REQUEST_BYTES))
        seconds = said.get("seconds") if isinstance(said, dict) and said.get("version") == VERSION else None
        if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and math.isfinite(seconds):
            return min(max(float(seconds), MIN_SECONDS), MAX_SECONDS)
    return None


def _read(folder: int, name: str, most: int) -> bytes:
    """Raises OSError, and ValueError for what is no file or too large: no link is followed, no FIFO waited for."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or state.st_size > most:
            raise ValueError(f"{name} is no file of at most {most} bytes")
        return file.read(most)


def _put(folder: int, name: str, content: bytes) -> None:
    """At once, as readers see it. It is not worth waiting for the disk."""
    temporary = f".{name}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(content)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        _remove(folder, temporary)
        raise


def _exists(folder: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return True
    return False


def _remove(folder: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)
        return True
    return False
