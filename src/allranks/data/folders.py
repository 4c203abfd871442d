"""The data files of a folder: which of its files are data, of which format, and which belong to a split."""

import json
from collections.abc import Sequence
from pathlib import Path

from allranks.data.cards import files_by_card
from allranks.data.packed_files import is_archive, unpacked_name
from allranks.data.splits import files_by_split
from allranks.errors import DataError
from allranks.listing import few

KINDS = {
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
NAMES_OF_KINDS = ("json", "csv", "tsv", "parquet", "text", "arrow")
# What `datasets`, and tools that read its folders, lay beside the data.
_NO_DATA = {
    *("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "dummy_data.zip"),
    *("croissant.json", "metadata.json"),
}
# What people lay beside it, with any ending.
_NO_DATA_STEMS = {"readme", "license", "licence", "copying", "notice", "citation", "changelog", "contributing"}


def of_folder(
    folder: Path, split: str, wanted: str | None = None, name: str | None = None
) -> tuple[tuple[Path, str], ...]:
    """(path, kind) of the files that are data and belong to the split, in the order of their names.

    wanted: the kind to take, where there are several. name: the configuration, of a folder whose README.md lists some.
    Errors: `DataError`, `UnreadableError`.
    """
    card = files_by_card(folder, name)
    if name and card is None:
        raise DataError(f"data set {folder}: name is for a data set whose README.md lists configs; remove it")
    folder, by_split = card or (folder, None)
    visible = [path for path in sorted(folder.rglob("*")) if _is_file(path) and is_data(path.relative_to(folder))]
    kinds = {path: kind for path in visible if (kind := kind_of_name(unpacked_name(path)))}
    if wanted:
        kinds = {path: wanted for path in visible if kinds.get(path, wanted) == wanted}
    elif any(kind != "text" for kind in kinds.values()):
        # Notes beside the data are not data: text is taken only where there is nothing else.
        kinds = {path: kind for path, kind in kinds.items() if kind != "text"}
    if not kinds:
        packed = next((path for path in visible if is_archive(path)), None)
        hint = f"; {packed.name} is packed in a way that is not read: unpack it" if packed else ""
        raise DataError(f"folder {folder} holds no data file ({', '.join(NAMES_OF_KINDS)}){hint}")
    splits = by_split or files_by_split(folder, list(kinds))
    if split not in splits:
        raise DataError(f"folder {folder} has no split {split!r}: {_listed(folder, splits)}")
    chosen = [path for path in splits[split] if path in kinds]
    if not chosen:
        raise DataError(f"folder {folder}: the files of split {split!r} are not there, or no data (README.md, configs)")
    found = sorted({kinds[path] for path in chosen})
    if len(found) > 1:
        raise DataError(
            f"folder {folder} holds files of several formats ({', '.join(found)}); name the wanted ones with "
            "data_files or set ds_type"
        )
    return tuple((path, kinds[path]) for path in chosen)


def saved_dataset(folder: Path, split: str) -> tuple[tuple[Path, str], ...] | None:
    """The Arrow files of a folder written by `datasets.save_to_disk`, or None if it is not one.

    Errors: `DataError` if a file or the split is missing.
    """
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            if split not in splits:
                raise DataError(f"data set {folder} has no split {split!r}; it has {', '.join(splits)}")
            folder = folder / split
        elif not (folder / "state.json").is_file():
            return None
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / entry["filename"] for entry in state["_data_files"]]
        own = state.get("_split")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"folder {folder} was written by save_to_disk but its state cannot be read: {error}") from error
    # A data set that was saved alone is taken as it is, whatever split it was; but not for another that is asked for.
    if split not in ("train", own, folder.name):
        raise DataError(f"data set {folder} has no split {split!r}; it was saved as {own or 'one without a split'}")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(f"folder {folder} was written by save_to_disk but lacks {', '.join(missing)}")
    return tuple((file, "arrow") for file in files)


def kind_of_name(name: str) -> str | None:
    """The kind of an unpacked file, by its name in lower case."""
    return KINDS.get(Path(name).suffix)


def is_data(path: Path) -> bool:
    """Whether a file, by its path within its folder, is no hidden one, and none that lies beside data."""
    hidden = any(part.startswith(".") for part in path.parts) or any(part.startswith("__") for part in path.parts[:-1])
    name = path.name.lower()
    return not hidden and name not in _NO_DATA and name.partition(".")[0] not in _NO_DATA_STEMS


def _is_file(path: Path) -> bool:
    if path.is_symlink() and not path.exists() and kind_of_name(unpacked_name(path)):
        raise DataError(f"data file {path} is a link to {path.readlink()}, which is not there; remove it, or mend it")
    return path.is_file()


def _listed(folder: Path, splits: dict[str, list[Path]]) -> str:
    """The splits that there are, each with one of its files."""
    named = [f"{split} ({_example(folder, files)})" if files else split for split, files in splits.items()]
    return f"it has {', '.join(named)}"


def _example(folder: Path, files: Sequence[Path]) -> str:
    return few([file.relative_to(folder) for file in files], 1)
