"""Splits of local data: which files of a folder belong to `train`, `test` or another, and slices of their records."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

from allranks.data.records import Record
from allranks.errors import DataError

# What stands for a split in the names of files and folders, and that order: as in `datasets` (data_files.py).
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARDED = re.compile(r"data/(?P<split>[^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_SLICE = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Split:
    """A split as a config writes it: a name, and bounds of a slice: a number, or a number with %; "" for none."""

    name: str
    start: str = ""
    stop: str = ""


def parse_split(text: str) -> Split:
    """Errors: `DataError` for what is no split."""
    match = _SLICE.fullmatch(text)
    if not match:
        raise DataError(f"split {text!r}: expected a name, with a slice if wanted: train, train[:1000], train[10%:]")
    for bound in (match["start"], match["stop"]):
        if bound and bound.endswith("%") and not -100 <= int(bound[:-1]) <= 100:
            raise DataError(f"split {text!r}: {bound} is more than everything; expected -100% to 100%")
    return Split(match["name"], match["start"] or "", match["stop"] or "")


def sliced(records: Callable[[], Iterator[Record]], split: Split) -> Iterator[Record]:
    """The records of the slice. They are read twice where their number must be known, and never all in memory."""
    bounds = (split.start, split.stop)
    if not any(bound.endswith("%") or bound.startswith("-") for bound in bounds):
        return islice(records(), *(int(bound) if bound else None for bound in bounds))
    total = sum(1 for _ in records())
    return islice(records(), *(_position(bound, total) for bound in bounds))


def files_by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split of a folder, by their names, as `datasets.load_dataset` chooses them.

    In this order: `data/NAME-00000-of-00005.parquet`; a folder's name; a file's name; else all are `train`. A name that
    holds the words of two splits belongs to both.
    """
    paths = {file: PurePath(file.relative_to(folder)) for file in files}
    sharded: dict[str, list[Path]] = {}
    for file, path in paths.items():
        if match := _SHARDED.fullmatch(path.as_posix()):
            sharded.setdefault(match["split"], []).append(file)
    if sharded:
        return {split: sharded[split] for split in [*_WORDS, *sorted(set(sharded) - set(_WORDS))] if split in sharded}
    for parts in (_folders, _name):
        by_split = {split: [file for file, path in paths.items() if _say(parts(path), split)] for split in _WORDS}
        if any(by_split.values()):
            return {split: chosen for split, chosen in by_split.items() if chosen}
    return {"train": list(files)}


def check_of_files(split: str, paths: Sequence[Path], named: str) -> None:
    """Files that are given by name are the split `train`, or the one that all their own names say.

    Errors: `DataError` for any other.
    """
    if split == "train" or all(_say((path.name,), split) for path in paths):
        return
    raise DataError(
        f"data set {named}: there is no split {split!r}: files that are given by name are the split train. Remove "
        "split, or give the folder, whose splits are told by the names of its files"
    )


def _folders(path: PurePath) -> Sequence[str]:
    return path.parts[:-1]


def _name(path: PurePath) -> Sequence[str]:
    return (path.name,)


def _say(names: Sequence[str], split: str) -> bool:
    """Whether a name holds a word of the split by itself: `train.jsonl`, `my-train_2.csv`, not `trains.jsonl`."""
    words = "|".join(map(re.escape, _WORDS.get(split, (split,))))
    pattern = re.compile(rf"(^|[-._ 0-9])({words})($|[-._ 0-9])", re.IGNORECASE)
    return any(pattern.search(name) for name in names)


def _position(bound: str, total: int) -> int | None:
    if not bound:
        return None
    position = round(int(bound[:-1]) * total / 100) if bound.endswith("%") else int(bound)
    return max(0, position + total if bound.startswith("-") else position)
