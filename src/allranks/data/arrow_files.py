"""Read Parquet and Arrow files, row by row, in batches that fit into memory."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from allranks.data.records import Record
from allranks.errors import DataError

_BATCH_ROWS = 1000


def read_parquet(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _rows(path, file.iter_batches(batch_size=_BATCH_ROWS))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"data file {path} cannot be read as Parquet: {error}") from error


def read_arrow(path: Path) -> Iterator[Record]:
    """The rows of an Arrow file, in the stream format that `datasets` writes or in the file format."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                batches: Any = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                source.seek(0)
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
            yield from _rows(path, batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"data file {path} cannot be read as Arrow: {error}") from error


def _rows(path: Path, batches: Any) -> Iterator[Record]:
    row = 0
    for batch in batches:
        for value in batch.to_pylist():
            yield Record(value, partial(_at_row, path, row))
            row += 1


def _at_row(path: Path, row: int) -> str:
    return f"{path} (row {row}, counted from 0)"
