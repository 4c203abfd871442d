import bz2
import gzip
import io
import json
import lzma
import re
import zipfile

import pyarrow
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


PACKED = {
    "a.jsonl.gz": gzip.compress,
    "A.JSONL.GZ": lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:]),
    "a.jsonl.bz2": bz2.compress,
    "a.jsonl.xz": lzma.compress,
    "a.jsonl.zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
    "a.jsonl.Zstd": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True) * 1,
    "a.jsonl": gzip.compress,  # its first bytes tell
    "a.zip": lambda content: zip_of({"__MACOSX/._a.jsonl": b"x", "data/A.jsonl": content}),
    "a.jsonl.zip": lambda content: zip_of({"a.jsonl": content}),
}


def zip_of(files):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()


@pytest.mark.parametrize("name", PACKED)
def test_packed_files_are_read_by_name_and_from_a_folder(tmp_path, jsonl, name):
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / name).write_bytes(PACKED[name](jsonl.read_bytes()))
    assert values(folder / name) == values(folder) == ROWS
    assert [record.where() for record in records(folder)] == [f"{folder / name}:{line}" for line in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar.gz", b"", "packed in a way that is not read; unpack it"),
        ("a.jsonl.lz4", b"", "packed in a way that is not read; unpack it"),
        ("a.7z", b"", "packed in a way that is not read; unpack it"),
        ("a.zip", zip_of({"a.jsonl": b"", "b.jsonl": b""}), "holds a.jsonl, b.jsonl; unpack it"),
        ("a.zip", zip_of({}), "holds nothing; unpack it"),
        ("a.zip", b"PK", "is damaged: File is not a zip file"),
    ],
)
def test_what_is_packed_otherwise_is_refused_with_the_way_out(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        records(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    if name != "a.zip":
        with pytest.raises(DataError, match=f"holds no data file.*{name} is packed in a way that is not read: unpack"):
            records(tmp_path)


def test_parquet_that_is_packed_again(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    assert "unpack it: Parquet is compressed by itself" in (records(tmp_path / "a.parquet.gz")[-1].problem or "")


def test_upper_case_endings(tmp_path, jsonl):
    for name in ("A.JSONL", "B.Json", "C.CSV"):
        (tmp_path / name).write_text("text\na\n" if name == "C.CSV" else jsonl.read_text())
        assert values(tmp_path / name)[0] == ROWS[0]


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
        ("a.json", b"", "a.json: the file is empty"),
        ("a.jsonl", b" \n\n", "a.jsonl: the file is empty"),
        ("a.csv", b"\n", "a.csv: the file is empty"),
        ("a.json", b"[]", "a.json: the list is empty"),
        ("a.json", b'[{"text": "a"},\n {"text": }]', r"a.json:2 \(record 1.*\(a.json:2:11: Expecting value"),
        ("a.json", b'[{"text": "a"}', r"a.json:1:15: not valid JSON"),
        ("a.json", b'[{"text": "a"}\n{"text": "b"}]', r"a.json:2:1: not valid JSON: Expecting ',' delimiter"),
        ("a.json", b'[{"text": "a"},]', r"a.json:1:15: not valid JSON: Illegal trailing comma"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl:1: not UTF-8 text: byte 0xff after character 10"),
        ("a.json", b'[{"text": 1},\n{"text": "\xe9"}]', r"a.json:2 \(record 1.*\): not UTF-8 text: byte 0xe9"),
        ("a.csv", b"text\na\n\xff\n", "a.csv:3: not UTF-8 text"),
        ("a.txt", b"a\n\xff\n", "a.txt:2: not UTF-8 text"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "a.jsonl: it is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16-le"), "a.jsonl: it is UTF-16 or UTF-32, not UTF-8"),
        ("a.txt", b"a\nb" + bytes(99), "a.txt:2: it holds a NUL character"),
        ("a.jsonl", b'{"text": 1}\n{"a": 1, "text": 2, "a": 3}', "a.jsonl:2: the key 'a' stands twice in one object"),
        ("a.json", b'[{"b": {"a": 1, "a": 1}}]', r"a.json:1 \(record 0.*\): the key 'a' stands twice"),
        ("a.jsonl", b'{"text": 1}\n' + b"[" * 200_000, "a.jsonl:2: nested too deeply"),
        (
            "a.json",
            b"[1,\n" + b"[" * 200_000 + b"]" * 200_000 + b"]",
            "a.json:2 .record 1, counted from 0.: nested too deeply",
        ),
        ("a.jsonl", b'{"n": 1}\n{"n": ' + b"9" * 5000 + b"}", "a.jsonl:2: a value cannot be read: Exceeds the limit"),
        ("a.csv", b'text,n\na,1\n"b,2\nc,3\n', r"a.csv:3: a quote \(\"\) that opens in this record is never closed"),
        ("a.csv", b'text,n\n"a"b,1\n', "a.csv:2: not valid CSV"),
        ("a.csv", b"text,text\na,b\n", "a.csv:1: two columns have the name 'text'"),
        ("a.parquet", b"nonsense", "a.parquet .row 0, counted from 0.: cannot be read as Parquet"),
        ("a.arrow", b"nonsense", "a.arrow .row 0, counted from 0.: cannot be read as Arrow"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid 1\n", "a.txt: this is a pointer of Git LFS"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid 1\n", "fetch it: git lfs pull"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "a.jsonl.gz: the file is empty"),
        ("a.jsonl.gz", b'{"text": "a"}', "a.jsonl.gz: its name says gzip, and it is not gzip data"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-9], "a.jsonl.gz:1: the packed data ends too early"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    last = records(tmp_path / name)[-1]
    assert last.value is None and re.search(message, f"{last.where()}: {last.problem}"), last.problem


def test_a_format_that_cannot_be_told(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot tell its format from its name; set ds_type"):
        records(tmp_path / "a.bin")


def test_what_is_behind_a_broken_element_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        '[{"text": "a"},\n {"text": },\n {"text": "b", "text": "c"},\n {"text": "[\\ud83d"},\n{"text": "e"}]'
    )
    found = records(path)
    assert [record.value and record.value["text"] for record in found] == ["a", None, None, "[\ud83d", "e"]
    assert [record.where().partition(" ")[0] for record in found] == [f"{path}:{line}" for line in (1, 2, 3, 4, 5)]


def test_objects_over_several_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert values(path) == ROWS
    assert [record.where() for record in records(path)] == [f"{path}:{line}" for line in (1, 4, 7)]


def test_a_first_line_that_is_cut_is_one_broken_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [\n{"messages": []}\n')
    assert [record.value for record in records(path)] == [None, {"messages": []}]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/folder/file.jsonl", "data file no/such/folder/file.jsonl does not exist"),
        ("./nothing", "does not exist"),
        ("train.jsonl", "does not exist"),
        ("train.jsonl.zst", "does not exist"),
        ("train.zip", "does not exist"),
        ("train.tar.gz", "does not exist"),
        ("s3://bucket/a.json", "remote addresses are not read"),
    ],
)
def test_paths_that_lead_nowhere(path, message):
    with pytest.raises(DataError, match=message):
        locate(DatasetSpec(path=path))


def test_a_name_that_could_be_on_the_hub_is_looked_up_there():
    assert locate(DatasetSpec(path="org/name")).hub_id == "org/name"


def test_what_lies_beside_the_data_is_no_data(tmp_path, jsonl):
    beside = ["dataset_infos.json", "README.md", "readme.json", "LICENSE.txt", "config.json"]
    for name in [*beside, "dataset_info.json", ".hidden.jsonl", "croissant.json"]:
        (tmp_path / name).write_text("{}")
    for folder in (".cache", "__pycache__"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "b.jsonl").write_text("{}")
    for spec in ({}, {"data_files": "*"}, {"data_files": ["*.json*"]}):
        assert [path for path, _ in locate(DatasetSpec(path=str(tmp_path), **spec)).files] == [jsonl]


def test_a_link_to_nothing_is_not_passed_over(tmp_path, jsonl):
    (tmp_path / "b.jsonl").symlink_to("gone")
    with pytest.raises(DataError, match=r"b.jsonl is a link to gone, which is not there"):
        locate(DatasetSpec(path=str(tmp_path)))


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
