"""Open data files as text, unpacked if they are packed. What stops the reading becomes an `UnreadableError`.

What a file is packed with is told from its first bytes, so that its name may be spelled in any way.
"""

import errno
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from allranks.data.records import UnreadableError

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # one without a file
}
_ENDINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd", ".zip": "zip"}
# Not read: there is no reader in the standard library, or they hold many files.
_ARCHIVES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".7z", ".rar", ".lz4", ".br", ".lzma", ".z", ".snappy", ".lzo")
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_UNDECODED = re.compile("[\udc80-\udcff]")


def unpacked_name(path: Path) -> str:
    """The name of what a file holds, in lower case: `a.jsonl` for `A.jsonl.GZ`; of a zip, the name of its only file."""
    name = path.name.lower()
    ending = Path(name).suffix
    if ending not in _ENDINGS:
        return name
    inner = name.removesuffix(ending)
    if ending == ".zip" and path.is_file():
        with reading(lambda: str(path)), _zip(path) as (_, member):
            inner = Path(member).name.lower()
    return inner


def is_packed(path: Path) -> bool:
    """Whether the name says that the file is packed, in a way that `open_text` reads."""
    return path.suffix.lower() in _ENDINGS


def is_archive(path: Path) -> bool:
    """Whether the name says that the file is packed in a way that is not read: it must be unpacked first."""
    return path.suffix.lower() in _ARCHIVES or ".tar" in (suffix.lower() for suffix in path.suffixes)


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """A file as text, unpacked, a byte order mark skipped. Bytes that are no UTF-8 come as lone surrogates.

    newline: as of the built-in `open`. Errors: `UnreadableError` for other encodings, and for what is not packed as its
    name says; while reading use `reading`.
    """
    with reading(lambda: str(path)), path.open("rb") as file:
        packing, named = _packing(file.peek(8)), _ENDINGS.get(path.suffix.lower())
        if named is not None and packing != named:
            raise UnreadableError(str(path), f"its name says {named}, and it is not {named} data")
    with ExitStack() as stack:
        with reading(lambda: f"{path}:1"):
            unpacked = stack.enter_context(_unpacked(path, packing))
            buffered = unpacked if isinstance(unpacked, io.BufferedReader) else io.BufferedReader(unpacked)
            start = buffered.peek(4)[:4]
        if encoding := _other_encoding(start):
            name = encoding.split()[0]
            raise UnreadableError(
                str(path),
                f"it is {encoding}, not UTF-8; convert it: iconv -f {name} -t UTF-8 {path.name} > NEW_FILE",
            )
        yield io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def text_lines(path: Path, newline: str | None = None) -> Iterator[str]:
    """The lines of a text file, each with its end. Errors: `UnreadableError` naming the line."""
    number = 0
    with reading(lambda: f"{path}:{number + 1}"), open_text(path, newline) as file:
        for line in file:
            number += 1
            yield line


@contextmanager
def reading(where: Callable[[], str]) -> Iterator[None]:
    """Turns what the unpacking libraries raise for damaged data into an `UnreadableError` at the place `where()`.

    An error of the operating system (no permission, a failing disk) is none of the data's, and goes through.
    """
    import lzma
    import zipfile

    try:
        yield
    except EOFError as error:
        raise UnreadableError(where(), "the packed data ends too early: the file was cut") from error
    except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UnreadableError(where(), f"the packed data is damaged: {error}") from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a damaged archive leads to places that no file has
            raise
        cut = "Truncated" in str(error)
        reason = "ends too early: the file was cut" if cut else f"is damaged: {error}"
        raise UnreadableError(where(), f"the packed data {reason}") from error


def undecoded(text: str) -> str | None:
    """What is wrong with text that holds bytes which are no UTF-8; None if it holds none."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        if found := _UNDECODED.search(text):
            return (
                f"not UTF-8 text: byte 0x{ord(found[0]) - 0xDC00:02x} after character {found.start()}. If the file has "
                "another encoding, convert it: iconv -f LATIN1 -t UTF-8"
            )
    return None


def _other_encoding(start: bytes) -> str | None:
    """What a text that begins with these bytes is, if it is not UTF-8."""
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    # Without a mark every other byte of English text is 0. Zeros alone are a hole that a power cut left.
    is_wide = len(start) == 4 and any(start[::2]) != any(start[1::2])
    return marked or ("UTF-16 or UTF-32" if is_wide else None)


def _packing(start: bytes) -> str | None:
    packing = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    # Plain text may begin with these three letters.
    return None if packing == "bzip2" and not start[3:4].isdigit() else packing


def _unpacked(path: Path, packing: str | None) -> AbstractContextManager[Any]:
    match packing:
        case "zip":
            return _zip_member(path)
        case "gzip":
            import gzip

            return gzip.open(path)
        case "bzip2":
            import bz2

            return bz2.open(path)
        case "xz":
            import lzma

            return lzma.open(path)
        case "zstd":
            import pyarrow  # comes with `datasets`; the standard library reads zstd from Python 3.14 on

            opened: AbstractContextManager[Any] = pyarrow.input_stream(str(path), compression="zstd")
            return opened
    return path.open("rb")


@contextmanager
def _zip_member(path: Path) -> Iterator[Any]:
    with _zip(path) as (archive, member), archive.open(member) as file:
        yield file


@contextmanager
def _zip(path: Path) -> Iterator[tuple[Any, str]]:
    """A zip archive and the name of the only file in it."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = [
            info
            for info in archive.infolist()
            if not info.is_dir() and not any(part.startswith((".", "__")) for part in Path(info.filename).parts)
        ]
        if len(members) != 1:
            found = ", ".join(info.filename for info in members[:5]) or "nothing"
            raise UnreadableError(
                str(path), f"a zip file is read if it holds one file, and this one holds {found}; unpack it"
            )
        if members[0].flag_bits & 1:
            raise UnreadableError(str(path), "the zip file is encrypted; unpack it")
        yield archive, members[0].filename
