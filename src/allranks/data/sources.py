"""Find the files of a data set and read their records, one by one, each with its place."""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allranks.data.folders import KINDS, NAMES_OF_KINDS, is_data, kind_of_name, of_folder, saved_dataset
from allranks.data.packed_files import is_archive, is_packed, unpacked_name
from allranks.data.records import Record, UnreadableError
from allranks.data.splits import check_of_files, parse_split, sliced
from allranks.errors import DataError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LOADERS = ("json", "csv", "parquet", "text", "arrow")


@dataclass(frozen=True)
class Source:
    """Where one data set is: local files in reading order, or the id of a data set on the Hub."""

    files: tuple[tuple[Path, str], ...]  # (path, kind)
    hub_id: str | None = None


def locate(spec: Any) -> Source:
    """Find the files of a `DatasetSpec`: those of its split.

    A local file, a folder of files, a folder written by `datasets.save_to_disk`, a loader's name with `data_files`, or
    a Hub id. Errors: `DataError` if nothing is there, no file can be read, or there is no such split.
    """
    try:
        source = _locate(spec)
    except UnreadableError as error:
        raise DataError(f"data set {spec.path}: {error}") from error
    for key in ("name", "revision"):
        of_folder = key == "name" and Path(spec.path).expanduser().is_dir() and not spec.data_files
        if source.hub_id is None and getattr(spec, key) and not of_folder:
            raise DataError(
                f"data set {spec.path}: {key} is for data sets on the Hub, and this one is local; remove it"
            )
    return source


def _locate(spec: Any) -> Source:
    path = Path(spec.path).expanduser()
    if spec.path in LOADERS and spec.data_files and not path.exists():
        return Source(_data_files(Path(), spec, kind=spec.ds_type or spec.path))
    if path.is_file():
        return Source(_by_name([(path, _kind(path, spec))], spec))
    if path.is_dir():
        if spec.data_files:
            return Source(_data_files(path, spec, kind=spec.ds_type))
        split = parse_split(spec.split).name
        return Source(saved_dataset(path, split) or of_folder(path, split, _format(spec.ds_type), spec.name))
    if "://" in spec.path:
        raise DataError(f"data set {spec.path}: remote addresses are not read; download it and give the local path")
    if _looks_like_hub_id(spec.path):
        return Source((), hub_id=spec.path)
    raise DataError(f"data file {spec.path} does not exist (looked for {path.absolute()})")


def read(source: Source, split: str) -> Iterator[Record]:
    """The records of local files. `split` may carry a slice, such as `train[:100]` or `train[10%:]`.

    A file that cannot be read, or not to its end, ends with a broken record. Errors: `DataError` for one that the
    operating system does not give.
    """
    return sliced(lambda: _read(source), parse_split(split))


def _read(source: Source) -> Iterator[Record]:
    for path, kind in source.files:
        try:
            yield from _read_file(path, kind)
        except UnreadableError as error:
            yield Record(None, error.where.__str__, problem=error.reason)
        except OSError as error:
            raise DataError(f"data file {path} cannot be read: {error.strerror or error}") from error


def _read_file(path: Path, kind: str) -> Iterator[Record]:
    if path.stat().st_size == 0:
        raise UnreadableError(str(path), "the file is empty")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UnreadableError(str(path), "this is a pointer of Git LFS, and not the data; fetch it: git lfs pull")
    if kind == "json":
        from allranks.data.json_files import read_json

        return read_json(path)
    if kind in ("parquet", "arrow"):
        from allranks.data.arrow_files import read_arrow, read_parquet

        return read_parquet(path) if kind == "parquet" else read_arrow(path)
    from allranks.data.text_files import read_csv, read_text

    return read_text(path) if kind == "text" else read_csv(path, delimiter="\t" if kind == "tsv" else ",")


def _format(ds_type: str | None) -> str | None:
    return "json" if ds_type == "jsonl" else ds_type


def _kind(path: Path, spec: Any) -> str:
    if spec.ds_type:
        return _format(spec.ds_type) or ""
    if kind := kind_of_name(unpacked_name(path)):
        return kind
    if is_archive(path):
        raise DataError(
            f"data file {path}: packed in a way that is not read; unpack it. Read are files with .gz, .bz2, .xz, .zst, "
            "and .zip with one file in it"
        )
    raise DataError(
        f"data file {path}: cannot tell its format from its name; set ds_type to one of {', '.join(NAMES_OF_KINDS)}"
    )


def _data_files(folder: Path, spec: Any, kind: str | None) -> tuple[tuple[Path, str], ...]:
    patterns = [spec.data_files] if isinstance(spec.data_files, str) else spec.data_files
    found = []
    for pattern in patterns:
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(str(folder / Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
        files = [Path(match) for match in matches if Path(match).is_file()]
        if glob.has_magic(pattern):
            files = [file for file in files if is_data(Path(file.name))]
        if not files:
            raise DataError(f"data_files of {spec.path}: {folder / pattern} does not exist")
        found += [(file, _format(kind) or _kind(file, spec)) for file in files]
    return _by_name(found, spec)


def _by_name(files: list[tuple[Path, str]], spec: Any) -> tuple[tuple[Path, str], ...]:
    check_of_files(parse_split(spec.split).name, [path for path, _ in files], spec.path)
    return tuple(files)


def _looks_like_hub_id(path: str) -> bool:
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path) is not None
    name = Path(path)
    return is_id and not is_archive(name) and not is_packed(name) and Path(unpacked_name(name)).suffix not in KINDS
