"""Rows of Arrow columns are the records that went in."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from allranks.data.columnar import row_restorer
from allranks.data.sources import locate, read

CALLS = [
    {"name": "weather", "arguments": {"time": "noon", "place": None}},
    {"name": "weather", "arguments": {"time": 12}},
    {"name": "stop", "arguments": {}},
]
RECORDS = [
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        ]
    }
    for call in CALLS
]


def values(path):
    from allranks.config.sections.data import DatasetSpec

    return [record.value for record in read(locate(DatasetSpec(path=str(path))), "train")]


@pytest.fixture
def mixed(tmp_path):
    """What `datasets` makes of records whose arguments are of several types: a column `Json()`."""
    import datasets

    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert "Json" in str(loaded.features)
    return loaded


def test_parquet_and_saved_data_sets_with_json_columns_are_read_as_the_json_lines(mixed, tmp_path):
    mixed.to_parquet(tmp_path / "data.parquet")
    mixed.save_to_disk(tmp_path / "saved")
    assert values(tmp_path / "data.parquet") == values(tmp_path / "saved") == RECORDS


def test_json_that_lost_its_type_and_kept_its_note_is_read_too(mixed, tmp_path):
    mixed.to_parquet(tmp_path / "data.parquet")
    table = parquet.read_table(tmp_path / "data.parquet")
    plain = pyarrow.schema([(field.name, without_json(field.type)) for field in table.schema], table.schema.metadata)
    arrays = [pyarrow.array(column.to_pylist(), kind) for column, kind in zip(table.columns, plain.types, strict=True)]
    parquet.write_table(pyarrow.table(arrays, schema=plain), tmp_path / "plain.parquet")
    assert values(tmp_path / "plain.parquet") == RECORDS


def without_json(kind):
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(without_json(kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, without_json(field.type)) for field in kind])
    return kind.storage_type if isinstance(kind, pyarrow.BaseExtensionType) else kind


def test_the_padding_of_structs_is_left_out_and_a_null_in_json_is_kept(tmp_path):
    rows = [{"call": {"x": 1}, "tools": None, "all": ["a", None]}, {"call": {"y": [{"z": 1}, {"w": None}]}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    assert values(tmp_path / "data.parquet") == [
        {"call": {"x": 1}, "tools": None, "all": ["a", None]},
        {"call": {"y": [{"z": 1}, {}]}, "tools": None, "all": None},
    ]
    json_column = pyarrow.schema([("value", pyarrow.json_())])
    assert row_restorer(json_column)({"value": '{"x": null}'}) == {"value": {"x": None}}
    assert row_restorer(json_column, parsed=True)({"value": "text"}) == {"value": "text"}


def test_broken_json_is_a_broken_record_with_its_row(tmp_path):
    storage = pyarrow.array(["[1]", "[1"])
    column = pyarrow.ExtensionArray.from_storage(pyarrow.json_(), storage)
    parquet.write_table(pyarrow.table({"value": column}), tmp_path / "data.parquet")
    from allranks.config.sections.data import DatasetSpec

    first, second = read(locate(DatasetSpec(path=str(tmp_path / "data.parquet"))), "train")
    assert first.value == {"value": [1]}
    assert second.value is None and "not valid JSON" in second.problem and "row 1" in second.where()


def test_rows_of_the_hub_lose_padding_and_keep_nulls_of_json(mixed, monkeypatch):
    import datasets

    from allranks.config.sections.data import DatasetSpec
    from allranks.data.hub import read_hub

    padded = datasets.Dataset.from_list([{"call": {"x": 1}}, {"call": {"y": 2}}])
    for rows, expected in ((mixed, RECORDS), (padded, [{"call": {"x": 1}}, {"call": {"y": 2}}])):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, rows=rows, **__: rows)  # without a network
        assert [record.value for record in read_hub(DatasetSpec(path="org/name"))] == expected
