import gzip
import json

import pytest

from allranks.config.sections.data import DatasetSpec
from allranks.data.sources import locate, read
from allranks.errors import DataError

ROWS = [{"text": "a"}, {"text": "b\nc"}, {"text": "ü"}]


def records(path, split="train", **spec):
    spec = DatasetSpec(path=str(path), split=split, **spec)
    return list(read(locate(spec), spec.split))


def values(path, **spec):
    found = records(path, **spec)
    assert all(record.problem is None for record in found)
    return [record.value for record in found]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("indent", [None, 1])
def test_json_list(tmp_path, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=indent))
    assert values(path) == ROWS


def test_json_lines_whatever_the_name(tmp_path, jsonl):
    (tmp_path / "a.json").write_text("\ufeff\n" + jsonl.read_text() + "\n", encoding="utf-8")
    (tmp_path / "a.data").write_text(jsonl.read_text())
    assert values(jsonl) == values(tmp_path / "a.json") == values(tmp_path / "a.data", ds_type="json") == ROWS


def test_a_single_object(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS[1], indent=2))
    assert values(tmp_path / "a.json") == [ROWS[1]]


def test_gzip(tmp_path, jsonl):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(jsonl.read_text())
    assert values(tmp_path / "a.jsonl.gz") == ROWS


def test_csv_with_quoted_newlines_names_the_line(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\n"a,\nb",1\nc,2\nd\ne,3\n')
    found = records(tmp_path / "a.csv")
    assert [r.value for r in found] == [
        {"text": "a,\nb", "n": "1"},
        {"text": "c", "n": "2"},
        None,
        {"text": "e", "n": "3"},
    ]
    assert found[1].where() == f"{tmp_path}/a.csv:4" and found[2].where() == f"{tmp_path}/a.csv:5"
    assert found[2].problem == "1 columns, but the first line names 2"


def test_text(tmp_path):
    (tmp_path / "a.txt").write_text("a\n\n b \n")
    assert values(tmp_path / "a.txt") == [{"text": "a"}, {"text": " b "}]


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == ROWS
    assert records(tmp_path / "a.parquet")[2].where() == f"{tmp_path}/a.parquet (row 2, counted from 0)"


def test_folders_written_by_the_datasets_library(tmp_path):
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "two")
    assert values(tmp_path / "one") == values(tmp_path / "two") == ROWS
    assert values(tmp_path / "two", split="test") == ROWS[:1]
    with pytest.raises(DataError, match="has no split 'nope'; it has train, test"):
        records(tmp_path / "two", split="nope")


def test_a_folder_is_read_in_the_order_of_names(tmp_path, jsonl):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name, row in [("b.jsonl", 1), ("a.jsonl", 0), ("sub/c.jsonl", 2), (".hidden.jsonl", 0)]:
        (folder / name).write_text(json.dumps(ROWS[row]))
    (folder / "README.md").write_text("about")
    assert values(folder) == ROWS
    assert values(folder, data_files="*.jsonl") == ROWS[:2]
    assert values(folder, data_files=["b.jsonl", "a.jsonl"]) == [ROWS[1], ROWS[0]]


def test_a_loaders_name_with_files(jsonl):
    assert values("json", data_files=str(jsonl)) == ROWS


@pytest.mark.parametrize(
    ("split", "count"), [("train[:2]", 2), ("train[1:]", 2), ("train[:67%]", 2), ("train[50%:60%]", 0)]
)
def test_slices(jsonl, split, count):
    assert len(values(jsonl, split=split)) == count


def test_a_broken_line_is_one_broken_record_with_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"\n{"text": "c"}\n')
    found = records(path)
    assert [r.value for r in found] == [{"text": "a"}, None, {"text": "c"}]
    assert found[1].where() == f"{path}:3" and "not valid JSON (column 13" in found[1].problem


def test_the_place_of_a_record_in_a_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n[\n  {"text": "[{,"},\n\n  {"text": "b"},\n3]')
    assert [r.where() for r in records(path)] == [
        f"{path}:3 (record 0, counted from 0)",
        f"{path}:5 (record 1, counted from 0)",
        f"{path}:6 (record 2, counted from 0)",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "is empty"),
        ("a.jsonl", b" \n\n", "is empty"),
        ("a.csv", b"\n", "is empty"),
        ("a.json", b"[]", "is an empty list"),
        ("a.json", b'[{"text": "a"},\n {"text": }]', r"a.json:2:11: not valid JSON: Expecting value"),
        ("a.json", b'[{"text": "a"}', r"a.json:1:15: not valid JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "not UTF-8 text"),
        ("a.txt", b"a\n\xff\n", "not UTF-8 text"),
        ("a.parquet", b"nonsense", "cannot be read as Parquet"),
        ("a.arrow", b"nonsense", "cannot be read as Arrow"),
        ("a.bin", b"nonsense", "cannot tell its format from its name; set ds_type"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        records(tmp_path / name)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/folder/file.jsonl", "data file no/such/folder/file.jsonl does not exist"),
        ("./nothing", "does not exist"),
        ("train.jsonl", "does not exist"),
        ("s3://bucket/a.json", "remote addresses are not read"),
    ],
)
def test_paths_that_lead_nowhere(path, message):
    with pytest.raises(DataError, match=message):
        locate(DatasetSpec(path=path))


def test_a_name_that_could_be_on_the_hub_is_looked_up_there():
    assert locate(DatasetSpec(path="org/name")).hub_id == "org/name"


def test_folders_without_usable_data(tmp_path):
    with pytest.raises(DataError, match="holds no data file"):
        locate(DatasetSpec(path=str(tmp_path)))
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    with pytest.raises(DataError, match="files of several formats"):
        locate(DatasetSpec(path=str(tmp_path)))
    assert len(locate(DatasetSpec(path=str(tmp_path), ds_type="csv")).files) == 1
    with pytest.raises(DataError, match=r"nope.jsonl does not exist"):
        locate(DatasetSpec(path=str(tmp_path), data_files="nope.jsonl"))


def test_keys_that_do_not_fit_the_source(jsonl):
    with pytest.raises(DataError, match="name is for data sets on the Hub"):
        locate(DatasetSpec(path=str(jsonl), name="default"))
