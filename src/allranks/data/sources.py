"""Find the files of a data set and read their records, one by one, each with its place."""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from allranks.data.records import Record
from allranks.errors import DataError

LOADERS = ("json", "csv", "parquet", "text", "arrow")
_KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".arrow": "arrow",
}
_SLICE = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?")


@dataclass(frozen=True)
class Source:
    """Where one data set is: local files in reading order, or the id of a data set on the Hub."""

    files: tuple[tuple[Path, str], ...]  # (path, kind)
    hub_id: str | None = None


def locate(spec: Any) -> Source:
    """Find the files of a `DatasetSpec`.

    A local file, a folder of files, a folder written by `datasets.save_to_disk`, a loader's name with `data_files`, or
    a Hub id. Errors: `DataError` if nothing is there, or no file can be read.
    """
    source = _locate(spec)
    for key in ("name", "revision"):
        if source.hub_id is None and getattr(spec, key):
            raise DataError(
                f"data set {spec.path}: {key} is for data sets on the Hub, and this one is local; remove it"
            )
    return source


def _locate(spec: Any) -> Source:
    path = Path(spec.path).expanduser()
    if spec.path in LOADERS and spec.data_files and not path.exists():
        return Source(_data_files(Path(), spec, kind=spec.ds_type or spec.path))
    if path.is_file():
        return Source(((path, _kind(path, spec)),))
    if path.is_dir():
        if spec.data_files:
            return Source(_data_files(path, spec, kind=spec.ds_type))
        return Source(_saved_dataset(path, spec.split) or _folder(path, spec))
    if "://" in spec.path:
        raise DataError(f"data set {spec.path}: remote addresses are not read; download it and give the local path")
    if _looks_like_hub_id(spec.path):
        return Source((), hub_id=spec.path)
    raise DataError(f"data file {spec.path} does not exist (looked for {path.absolute()})")


def read(source: Source, split: str) -> Iterator[Record]:
    """The records of local files. `split` may carry a slice, such as `train[:100]` or `train[10%:]`."""
    records = (record for path, kind in source.files for record in _read_file(path, kind))
    return take_slice(records, split)


def take_slice(records: Iterator[Record], split: str) -> Iterator[Record]:
    match = _SLICE.fullmatch(split)
    if not match:
        raise DataError(f"split {split!r}: expected a name, with a slice if wanted: train, train[:1000], train[10%:]")
    bounds = (match["start"] or "", match["stop"] or "")
    if any(bound.endswith("%") for bound in bounds):
        everything = list(records)
        start, stop = (_bound(bound, len(everything)) for bound in bounds)
        return iter(everything[start:stop])
    return islice(records, _bound(bounds[0], None), _bound(bounds[1], None))


def _bound(text: str, count: int | None) -> int | None:
    if not text:
        return None
    if text.endswith("%"):
        assert count is not None
        return round(int(text[:-1]) * count / 100)
    return int(text)


def _read_file(path: Path, kind: str) -> Iterator[Record]:
    if path.stat().st_size == 0:
        raise DataError(f"data file {path} is empty")
    if kind == "json":
        from allranks.data.json_files import read_json

        return read_json(path)
    if kind in ("parquet", "arrow"):
        from allranks.data.arrow_files import read_arrow, read_parquet

        return read_parquet(path) if kind == "parquet" else read_arrow(path)
    from allranks.data.text_files import read_csv, read_text

    return read_text(path) if kind == "text" else read_csv(path, delimiter="\t" if kind == "tsv" else ",")


def _kind(path: Path, spec: Any) -> str:
    if spec.ds_type:
        return "json" if spec.ds_type == "jsonl" else spec.ds_type
    name = path.name.removesuffix(".gz")
    kind = _KINDS.get(Path(name).suffix.lower())
    if kind is None:
        raise DataError(
            f"data file {path}: cannot tell its format from its name; set ds_type to one of json, csv, tsv, parquet, "
            "text, arrow"
        )
    return kind


def _data_files(folder: Path, spec: Any, kind: str | None) -> tuple[tuple[Path, str], ...]:
    patterns = [spec.data_files] if isinstance(spec.data_files, str) else spec.data_files
    found = []
    for pattern in patterns:
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(str(folder / Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
        files = [Path(match) for match in matches if Path(match).is_file()]
        if not files:
            raise DataError(f"data_files of {spec.path}: {folder / pattern} does not exist")
        found += [(file, ("json" if kind == "jsonl" else kind) or _kind(file, spec)) for file in files]
    return tuple(found)


def _folder(folder: Path, spec: Any) -> tuple[tuple[Path, str], ...]:
    visible = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if spec.ds_type:
        wanted = "json" if spec.ds_type == "jsonl" else spec.ds_type
        files = [(path, wanted) for path in visible if _KINDS.get(_suffix(path), wanted) == wanted]
    else:
        # A README or licence beside the data is not data: take text only where there is nothing else.
        known = [(path, _KINDS[_suffix(path)]) for path in visible if _suffix(path) in _KINDS]
        files = [item for item in known if item[1] != "text"] or known
    if not files:
        raise DataError(f"folder {folder} holds no data file (json, jsonl, csv, tsv, parquet, text, arrow)")
    if len({kind for _, kind in files}) > 1:
        raise DataError(
            f"folder {folder} holds files of several formats ({', '.join(sorted({k for _, k in files}))}); "
            "name the wanted ones with data_files or set ds_type"
        )
    return tuple(files)


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _saved_dataset(folder: Path, split: str) -> tuple[tuple[Path, str], ...] | None:
    """The Arrow files of a folder written by `datasets.save_to_disk`, or None if it is not one."""
    import json

    name = split.partition("[")[0]
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            if name not in splits:
                raise DataError(f"data set {folder} has no split {name!r}; it has {', '.join(splits)}")
            folder = folder / name
        if not (folder / "state.json").is_file():
            return None
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"folder {folder} was written by save_to_disk but its state cannot be read: {error}") from error
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(f"folder {folder} was written by save_to_disk but lacks {', '.join(missing)}")
    return tuple((file, "arrow") for file in files)


def _looks_like_hub_id(path: str) -> bool:
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path) is not None
    return is_id and Path(path.removesuffix(".gz")).suffix.lower() not in _KINDS
