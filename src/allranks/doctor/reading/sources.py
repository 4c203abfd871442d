"""The logs that are named, as streams of bytes: files, folders, .gz/.xz/.bz2, standard input."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from allranks.doctor.reading.from_json import FromJson
from allranks.errors import UsageError
from allranks.listing import printable

STDIN = "-"
_PACKED: dict[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\0": lzma.open,
    b"BZh": bz2.open,
}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UNPACK_FIRST = {b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"), b"PK\x03\x04": ("zip", "unzip -p")}
_MOST_FILES = 20_000  # of a folder: 64 nodes with 8 ranks have some thousand
# Of a folder: what programs write logs to. A run's folder also has checkpoints, data and pictures.
_LOGS = re.compile(
    r"(?:\.(?:log|txt|out|err|stdout|stderr)(?:\.?\d{1,4})?|^(?:stdout|stderr|dmesg|syslog|messages)|\.[oe]\d+|-\d+\.\w+)(?:\.(?:gz|xz|bz2|zst|zip))?$"
)
# Of a file's name a part; of a folder's the whole: an adapter's rank is in the names of many.
_RANK = re.compile(r"(?:^|[_.-])(?<!lora[_.-])(?:rank|worker|proc|task)[-_.]?0*(\d{1,6})(?=[_.-]|$)", re.IGNORECASE)
_FOLDER_OF_RANK = re.compile(r"(?:rank|worker|proc|task)[-_.]?0*(\d{1,6})", re.IGNORECASE)
_TORCHRUN = re.compile(r"/attempt_\d+/(\d{1,5})/std(?:out|err)\.log$")
_NODE = re.compile(r"(?:^|[/_.-])(node[-_]?(?=\w{0,40}\d)\w{1,40}?|host[-_]?\d{1,6})(?=[/.]|[_-]rank|$)", re.IGNORECASE)
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Source:
    """A log; `rank` and `node` as its name tells them."""

    path: Path | None
    name: str
    rank: int | None = None
    local_rank: int | None = None
    node: str | None = None
    is_named: bool = True
    """By the user, and not found in a folder that he named."""


def sources(named: Sequence[str | Path]) -> list[Source]:
    """The logs behind these names, in their order; a folder's by name. Raises UsageError where one is not there."""
    found: list[Source] = []
    for name in named:
        if str(name) == STDIN:
            found.append(Source(None, "<stdin>"))
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            inside = _of_folder(path)
            if not inside:
                raise UsageError(
                    f"{printable(path)}: no log in it (*.log, *.out, *.err, *.txt, .gz of them): name the files"
                )
            found += inside
        elif path.exists():
            found.append(_source(path, path))
        else:
            raise UsageError(f"{printable(path)}: no such file or folder; `-` reads standard input")
    seen: set[Path | None] = set()
    return [one for one in found if one.path not in seen and not seen.add(one.path)]  # type: ignore[func-returns-value]


def _of_folder(folder: Path) -> list[Source]:
    logs = sorted(path for path in folder.rglob("*") if _LOGS.search(path.name) and path.is_file())
    return [replace(_source(path, path.relative_to(folder)), is_named=False) for path in logs[:_MOST_FILES]]


def _source(path: Path, shown: Path) -> Source:
    text = shown.as_posix()
    local, node = _TORCHRUN.search(f"/{text}"), _NODE.search(text)
    of_folders = (_FOLDER_OF_RANK.fullmatch(one.name) for one in shown.parents)
    rank = _RANK.search(shown.name) or next(filter(None, of_folders), None)
    return Source(
        path,
        str(path),
        int(rank[1]) if rank else None,
        int(local[1]) if local else None,
        re.sub(r"^node[-_](?=\d+$)", "", node[1]) if node else None,
    )


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """Its bytes, uncompressed. Raises UsageError for what cannot be opened."""
    if source.path is None:
        yield FromJson(sys.stdin.buffer)  # type: ignore[misc]
        return
    try:
        file = source.path.open("rb")
    except OSError as why:
        raise UsageError(f"{printable(source.name)}: cannot be read: {why.strerror or why}") from why
    with file:
        # A pipe cannot be looked into without taking from it.
        begins = file.peek(8)[:8] if source.path.is_file() else b""
        for magic, (form, command) in _UNPACK_FIRST.items():
            if begins.startswith(magic):
                shown = printable(source.name)
                raise UsageError(f"{shown}: packed as {form}: {command} FILE | allranks doctor -")
        unpack = next((one for magic, one in _PACKED.items() if begins.startswith(magic)), None)
        unpacked: Any = unpack(file) if unpack else file
        try:
            begins = unpacked.peek(8)[:8] if unpack else begins
        except _UNREADABLE:
            begins = b""  # reading says what is wrong with it
        encoding = _utf_16(begins)
        yield FromJson(_FromUtf16(unpacked, encoding) if encoding else unpacked)  # type: ignore[arg-type,misc]


def _utf_16(begins: bytes) -> str:
    """By its mark, or where that is not there by the zero that each character of ASCII has."""
    if begins[:2] in _UTF_16:
        return "utf-16"
    for encoding, zeros, letters in (
        ("utf-16-le", begins[1::2], begins[::2]),
        ("utf-16-be", begins[::2], begins[1::2]),
    ):
        if len(zeros) == 4 and not any(zeros) and all(letters):
            return encoding
    return ""


class _FromUtf16:
    """A log in UTF-16, as Windows' shells write what they redirect, in the bytes that all other logs are in."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._read1 = getattr(file, "read1", file.read)
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="replace")

    def read(self, size: int) -> bytes:
        while piece := self._read1(size):
            if text := self._decoder.decode(piece):
                return text.encode(errors="replace")
        return b""


def read_some(file: BinaryIO, size: int) -> tuple[bytes, str]:
    """Up to `size` bytes, as soon as there are any; and why there will be no more, where something is broken."""
    try:
        read = getattr(file, "read1", file.read)
        return read(size), ""
    except _UNREADABLE as why:
        return b"", f"the rest cannot be read: {why}"
