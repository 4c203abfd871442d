"""The split of a local folder is what `datasets` makes of the names in it; slices; files given by name."""

import itertools
import json
import os
import random

import pytest

from allranks.config.sections.data import DatasetSpec
from allranks.data.sources import locate, read
from allranks.errors import DataError

NAMES = [
    "train",
    "test",
    "dev",
    "valid",
    "val",
    "evaluation",
    "training",
    "x",
    "test-01",
    "my-train_2",
    "trains",
    "attest",
]
NAMES += ["train_test", "a.eval", "latest", "0test0", "data"]


def fill(folder, paths):
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps({"text": str(path), "n": number}) + "\n")


def found(folder, split, **spec):
    spec = DatasetSpec(path=str(folder), split=split, **spec)
    return [record.value["text"] for record in read(locate(spec), spec.split)]


def folders():
    """Names of files in a folder: written down, and drawn."""
    yield ["train.jsonl", "test.jsonl"]
    yield ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/extra-00000-of-00001.jsonl"]
    yield ["train/a.jsonl", "test/a.jsonl", "validation.jsonl"]
    yield ["a.jsonl", "b.jsonl"]
    yield ["data/train.jsonl", "data/dev-1.jsonl", "data/val 2.jsonl", "sub/testing_x.jsonl"]
    chance = random.Random(0)
    for _ in range(40):
        paths = {
            "/".join([*chance.choices(NAMES, k=chance.choice([0, 0, 1, 2])), f"{chance.choice(NAMES)}.jsonl"])
            for _ in range(chance.randrange(1, 6))
        }
        yield sorted(paths)


@pytest.mark.parametrize("paths", list(folders()))
def test_splits_are_those_of_datasets(tmp_path, paths):
    from datasets.data_files import get_data_patterns

    fill(tmp_path, paths)
    theirs = {
        split: sorted({os.path.relpath(file, tmp_path) for pattern in patterns for file in resolved(pattern, tmp_path)})
        for split, patterns in get_data_patterns(str(tmp_path)).items()
    }
    for split in {"train", "validation", "test", "extra", *theirs}:
        if split in theirs:
            assert found(tmp_path, split) == theirs[split]
        else:
            with pytest.raises(DataError, match=f"has no split '{split}': it has {next(iter(theirs))} "):
                found(tmp_path, split)


def resolved(pattern, folder):
    from datasets.data_files import resolve_pattern

    try:
        return resolve_pattern(pattern, str(folder))
    except FileNotFoundError:
        return []


def test_test_data_is_told_whatever_the_case_and_packing_of_its_name(tmp_path):
    fill(tmp_path, ["Train.jsonl", "TEST.JSONL"])
    assert found(tmp_path, "train") == ["Train.jsonl"]
    assert found(tmp_path, "test") == ["TEST.JSONL"]


def test_formats_of_another_split_do_not_matter(tmp_path):
    fill(tmp_path, ["train.jsonl"])
    (tmp_path / "test.csv").write_text("text\nc\n")
    assert found(tmp_path, "train") == ["train.jsonl"] and found(tmp_path, "test") == ["c"]


def test_files_given_by_name_are_train_or_what_their_names_say(tmp_path):
    fill(tmp_path, ["test.jsonl", "a.jsonl"])
    for split in ("train", "test"):
        assert found(tmp_path / "test.jsonl", split) == ["test.jsonl"]
    assert found(tmp_path, "train", data_files="*.jsonl") == ["a.jsonl", "test.jsonl"]
    for spec in ({"path": tmp_path / "a.jsonl"}, {"path": tmp_path, "data_files": "*.jsonl"}):
        with pytest.raises(DataError, match=r"there is no split 'test': files .* are the split train"):
            found(spec.pop("path"), "test", **spec)


def test_a_saved_data_set_has_the_split_it_was_saved_as(tmp_path):
    import datasets

    data = datasets.Dataset.from_list([{"text": "a"}], split="test")
    data.save_to_disk(tmp_path / "alone")
    assert found(tmp_path / "alone", "train") == found(tmp_path / "alone", "test") == ["a"]
    with pytest.raises(DataError, match="no split 'validation'; it was saved as test"):
        found(tmp_path / "alone", "validation")
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "dict")
    assert found(tmp_path / "dict", "test") == ["a"]
    with pytest.raises(DataError, match="no split 'train'; it has test"):
        found(tmp_path / "dict", "train")


BOUNDS = ["", "0", "3", "9", "12", "-1", "-4", "-20", "10%", "33%", "-25%", "100%"]


def test_slices_are_those_of_datasets(tmp_path):
    import datasets

    path = tmp_path / "a.jsonl"
    fill(tmp_path, ["a.jsonl"])
    path.write_text("".join(json.dumps({"text": str(number)}) + "\n" for number in range(11)))
    whole = datasets.Dataset.from_list([{"text": str(number)} for number in range(11)])
    for start, stop in itertools.product(BOUNDS, BOUNDS):
        if "" not in (start, stop) and ("%" in start) != ("%" in stop):
            continue  # they take 3 for 3% then
        split = f"train[{start}:{stop}]"
        instruction = datasets.ReadInstruction.from_spec(split)
        try:
            (absolute,) = instruction.to_absolute({"train": 11})
        except (AssertionError, ValueError):  # they refuse bounds beyond the end; a slice of Python's stops there
            continue
        assert found(path, split) == whole["text"][absolute.from_ : absolute.to], split
    for split in ("train[a:]", "train+test", "train[:120%]", ""):
        with pytest.raises(DataError, match="expected"):
            found(path, split)


CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path:
    - main/test-a.jsonl
    - main/test-b.jsonl
- config_name: other
  data_dir: other
- config_name: flat
  data_files: "*.jsonl"
---
# A data set
"""


def test_a_data_card_says_the_files_of_each_configuration(tmp_path):
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

    fill(tmp_path, [*(f"main/{name}.jsonl" for name in ("train-0", "test-a", "test-b", "test-c")), "x.jsonl"])
    fill(tmp_path, ["other/train.jsonl", "other/dev.jsonl"])
    (tmp_path / "README.md").write_text(CARD)
    for name in get_dataset_config_names(str(tmp_path)):
        for split in get_dataset_split_names(str(tmp_path), name):
            theirs = load_dataset(str(tmp_path), name, split=split, cache_dir=tmp_path / "cache" / ".c")["text"]
            assert found(tmp_path, split, name=name) == list(theirs)
    with pytest.raises(DataError, match="has several configurations and no default: set name to one of main, other"):
        found(tmp_path, "train")
    with pytest.raises(DataError, match="has no configuration 'mian': set name to one of main, other, flat"):
        found(tmp_path, "train", name="mian")
    with pytest.raises(DataError, match=r"has no split 'validation': it has train .main/train-0.jsonl., test"):
        found(tmp_path, "validation", name="main")
    (tmp_path / "README.md").write_text(CARD.replace("- config_name: other", "  default: true\n- config_name: other"))
    assert found(tmp_path, "train") == ["main/train-0.jsonl"]
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(DataError, match=r"README.md: its head is not valid YAML"):
        found(tmp_path, "train")
    (tmp_path / "README.md").write_text("# Nothing\n---\nconfigs:\n---\n")
    with pytest.raises(DataError, match=r"name is for a data set whose README.md lists configs; remove it"):
        found(tmp_path, "train", name="main")


def test_columns_of_one_name_are_not_lost(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    (record,) = read(locate(DatasetSpec(path=str(tmp_path / "a.parquet"))), "train")
    assert "two columns have the name 'text'" in record.problem
