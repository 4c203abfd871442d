"""Data sets on the Hugging Face Hub, through the `datasets` library."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from allranks.data.columnar import row_restorer
from allranks.data.records import Record, RecordError
from allranks.errors import DataError
from allranks.observe.libraries import shown


def read_hub(spec: Any) -> Iterator[Record]:
    """The records of a data set on the Hub, downloaded or from the local cache."""
    import datasets

    try:
        with shown():
            rows = datasets.load_dataset(
                spec.path, spec.name, split=spec.split, revision=spec.revision, data_files=spec.data_files
            )
    except Exception as error:  # the library raises many kinds, all of them about reaching or reading the data set
        raise DataError(_unreachable(spec, error)) from error
    restored = row_restorer(rows.features.arrow_schema, parsed=True)
    for row in range(len(rows)):
        where = partial(_at_row, spec.path, spec.split, row)
        try:
            value = restored(rows[row])
        except RecordError as error:
            yield Record(None, where, problem=str(error))
        except Exception as error:  # many kinds again, of decoding a damaged cache
            yield Record(None, where, problem=f"cannot be read: {' '.join(str(error).split())}")
        else:
            yield Record(value, where)


def resolve_commit(spec: Any) -> str:
    """The commit hash that the data set's revision stands for now: what the fingerprint takes for its content."""
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(spec.path, revision=spec.revision).sha
    except Exception as error:
        commit = _cached_commit(spec)
        if commit is None:
            raise DataError(_unreachable(spec, error)) from error
    if commit is None:
        raise DataError(_unreachable(spec, ValueError("the Hub names no commit")))
    return commit


def _cached_commit(spec: Any) -> str | None:
    """The commit of the copy in the local cache, for machines without a network."""
    from pathlib import Path

    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=spec.path, repo_type="dataset")
    reference = folder / "refs" / (spec.revision or "main")
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def _unreachable(spec: Any, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"data set {spec.path}: there is no such local file or folder, and it cannot be loaded from the Hub: {reason}. "
        "Check the path; without a network, download the data set elsewhere and give its local path"
    )


def _at_row(path: str, split: str, row: int) -> str:
    return f"{path}, split {split} (row {row}, counted from 0)"
