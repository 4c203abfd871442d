"""Read Parquet and Arrow files, row by row, in batches that fit into memory."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from allranks.data.columnar import row_restorer
from allranks.data.packed_files import is_packed
from allranks.data.records import Record, RecordError, UnreadableError

_BATCH_ROWS = 1000
_BATCH_BYTES = 8 * 2**20
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file. Errors: `UnreadableError` from the first row on that cannot be read."""
    from pyarrow import parquet

    return _rows(path, "Parquet", lambda: _parquet_batches(path, parquet))


def read_arrow(path: Path) -> Iterator[Record]:
    """The rows of an Arrow file, in the stream format that `datasets` writes or in the file format.

    Errors: `UnreadableError` from the first row on that cannot be read.
    """
    import pyarrow

    return _rows(path, "Arrow", lambda: _arrow_batches(path, pyarrow))


def _parquet_batches(path: Path, parquet: Any) -> Iterator[Any]:
    # Row groups are not read ahead: they may be as large as the file.
    with parquet.ParquetFile(path, pre_buffer=False, memory_map=True) as file:
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            count = _rows_within(group.total_byte_size, group.num_rows)
            yield from file.iter_batches(batch_size=count, row_groups=[number])


def _arrow_batches(path: Path, pyarrow: Any) -> Iterator[Any]:
    with pyarrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            file = pyarrow.ipc.open_file(source)
            yield from (file.get_batch(i) for i in range(file.num_record_batches))
            return
        with pyarrow.ipc.open_stream(source) as stream:
            yield from stream
        # A file that was cut between two batches ends as well as a whole one, but for its last mark.
        source.seek(max(0, source.size() - len(_END_OF_STREAM)))
        end = source.read()
        if end != _END_OF_STREAM and not (end.endswith(bytes(4)) and not _has_marks(source)):
            raise EOFError("it ends without its mark: the file was cut")


def _has_marks(source: Any) -> bool:
    """Whether messages begin with four 0xff, as they do since Arrow 0.15, and so the end of the stream."""
    source.seek(0)
    return bool(source.read(4) == _END_OF_STREAM[:4])


def _rows(path: Path, kind: str, batches: Any) -> Iterator[Record]:
    row = 0
    try:
        for batch in batches():
            # A damaged offset must not lead into other memory, not even while sizes are summed.
            count = _rows_within(batch.nbytes, batch.num_rows) if _is_sound(batch) else 1
            names = batch.schema.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"two columns have the name {twice!r}; one of them would be lost")
            restored = row_restorer(batch.schema)
            for start in range(0, batch.num_rows, count):
                part = batch.slice(start, count)
                for value, problem in _values(part):
                    where = partial(_at_row, path, row)
                    row += 1
                    try:
                        yield Record(value if problem else restored(value), where, problem=problem)
                    except RecordError as error:
                        yield Record(None, where, problem=str(error))
    except OSError as error:
        if error.errno is not None:
            raise
        raise _unreadable(path, kind, row, error) from error
    # Damaged metadata makes the library raise of many kinds: for types it does not know, sizes that are none, names
    # that are no text.
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        EOFError,
        OverflowError,
        MemoryError,
        NotImplementedError,
    ) as error:
        raise _unreadable(path, kind, row, error) from error


def _unreadable(path: Path, kind: str, row: int, error: Exception) -> UnreadableError:
    reason = " ".join((str(error) or type(error).__name__).split())
    hint = f"; unpack it: {kind} is compressed by itself" if is_packed(path) else ""
    return UnreadableError(_at_row(path, row), f"cannot be read as {kind}: {reason}{hint}")


def _values(rows: Any) -> list[tuple[Any, str | None]]:
    """(value, what is wrong) of each row. Where something is, row by row, to find which."""
    try:
        rows.validate(full=True)
        return [(value, None) for value in rows.to_pylist()]
    except (ValueError, ArithmeticError, TypeError) as error:
        if rows.num_rows == 1:
            return [(None, f"cannot be read: {' '.join(str(error).split())}")]
    return [item for i in range(rows.num_rows) for item in _values(rows.slice(i, 1))]


def _is_sound(batch: Any) -> bool:
    try:
        batch.validate(full=True)
    except ValueError:
        return False
    return True


def _rows_within(num_bytes: int, num_rows: int) -> int:
    """How many of `num_rows` rows to take at a time, on average sizes."""
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * num_rows // max(1, num_bytes)))


def _at_row(path: Path, row: int) -> str:
    return f"{path} (row {row}, counted from 0)"
