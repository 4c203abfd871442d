"""`allranks init`: the type that fits the data, a config that loads, and no question without a terminal."""

import json

import pytest

from allranks.cli.init import init
from allranks.config import load_config
from allranks.errors import AllranksError, UsageError

RECORDS = {
    "chat_template": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "alpaca:tokenizer_default": {"instruction": "a", "input": "", "output": "b"},
    "completion": {"text": "a" * 9000},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("kind", RECORDS)
def test_the_config_that_is_written_loads_and_has_the_type_that_fits(folder, kind, method):
    (folder / "d.jsonl").write_text(json.dumps(RECORDS[kind]) + "\n")
    init(model="org/m: x", data="d.jsonl", method=method, nodes=2, output=folder / "c.yaml")
    config = load_config(folder / "c.yaml")
    assert config.model.base_model == "org/m: x"
    assert config.data.datasets[0].type == kind
    assert config.data.sequence_len == (4096 if kind == "completion" else 512)
    assert config.adapter.adapter == (None if method == "full" else method)
    text = (folder / "c.yaml").read_text()
    assert "--hosts node[0-1]" in text
    assert (folder / text.partition("\n")[0].partition("$schema=")[2]).is_file()


def test_questions_and_answers_of_other_names(folder):
    (folder / "d.jsonl").write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    init(model="m", data="d.jsonl", method="lora", nodes=1, output=folder / "c.yaml")
    own = load_config(folder / "c.yaml").data.datasets[0].type
    assert (own.field_instruction, own.field_output) == ("question", "answer")


def test_without_a_terminal_it_says_what_is_missing(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UsageError, match="--data is missing"):
        init(model="m", data=None, method=None, nodes=None, output=folder / "c.yaml")


def test_data_that_is_not_there_is_told_and_nothing_written(folder):
    with pytest.raises(AllranksError, match=r"nothing\.jsonl"):
        init(model="m", data="nothing.jsonl", method=None, nodes=None, output=folder / "c.yaml")
    assert not (folder / "c.yaml").exists()


def test_a_config_is_never_overwritten(folder):
    (folder / "c.yaml").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        init(model="m", data="d.jsonl", method=None, nodes=None, output=folder / "c.yaml")
