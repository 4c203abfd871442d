"""How it looks in terminals: help, messages, questions."""

import json
import re

import pytest
import typer
import yaml

from allranks.cli.commands import COMMANDS, app, load_command
from allranks.cli.help import with_our_help
from tests.on_terminal import CTRL_C, CTRL_D, allranks_on_terminal, cut_words

NAMES = ["", *COMMANDS, "config show", "config schema", "config import"]
MODEL, DATA, METHOD, NODES = "Model (folder or Hub id): ", "Data (file, folder or Hub id): ", "[lora]: ", "[1]: "


def command_of(name):
    first, _, second = name.partition(" ")
    command = with_our_help(typer.main.get_command(app)) if not name else load_command(first)
    return command.commands[second] if second else command


def help_of(name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    command = command_of(name)
    return command.get_help(command.context_class(command, info_name=f"allranks {name}".strip()))


@pytest.mark.parametrize("columns", [60, 80, 140])
@pytest.mark.parametrize("name", NAMES)
def test_help_fits_and_cuts_no_word_that_can_be_typed(name, columns, monkeypatch):
    shown = help_of(name, columns, monkeypatch)
    assert max(map(len, shown.splitlines())) < columns
    assert not [line for line in shown.splitlines() if re.search(r"\w-$", line)], "a word was cut at its hyphen"
    assert "\u2011" not in shown, "what is copied must be what can be typed"
    assert "…" not in shown.replace("allranks-demo-2, …", "").replace("5GB …", ""), "a description was cut"
    assert "..." not in shown.replace("]...", "")


def test_wide_terminals_are_used(monkeypatch):
    wide, narrow = (help_of("train", columns, monkeypatch) for columns in (140, 80))
    assert len(wide.splitlines()) < len(narrow.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_usage_shows_what_to_type(name, monkeypatch):
    usage = help_of(name, 300, monkeypatch).splitlines()[0]
    assert "stray" not in usage and "[[" not in usage
    assert not re.search(r"\{[A-Z]", usage), "braces are for choices"


def records(folder, name="d.jsonl"):
    (folder / name).parent.mkdir(exist_ok=True)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (folder / name).write_text(json.dumps({"messages": messages}) + "\n")


def test_init_asks_again_until_an_answer_can_be_taken(tmp_path):
    records(tmp_path, "my data/d 1.jsonl")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text("no json\n")
    answers = [
        (MODEL, ""),
        (MODEL, "org/model"),
        (DATA, "nothing.jsonl"),
        (DATA, "empty.jsonl"),
        (DATA, "bad.jsonl"),
        (DATA, "'my data/d 1.jsonl'"),
        (METHOD, "lroa"),
        (METHOD, "QLoRA"),
        *((NODES, wrong) for wrong in ("two", "0", "-3", "1.5", "2 nodes")),
        (NODES, "4"),
    ]
    shown = allranks_on_terminal("init", columns=80, cwd=tmp_path, answers=answers)
    assert shown.exit_code == 0, shown.text
    assert "nothing.jsonl does not exist" in shown.text
    assert "empty.jsonl: the file is empty" in shown.text
    assert "bad.jsonl:1" in shown.text
    assert shown.text.count("expected a whole number of nodes") == 5
    assert "Traceback" not in shown.text and "\x1b[" not in shown.raw.replace("\x1b[?2004", "")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["adapter"] == "qlora"
    assert config["datasets"] == [{"path": "my data/d 1.jsonl", "type": "chat_template"}]
    assert "--hosts node[0-3]" in (tmp_path / "config.yaml").read_text()
    asked = ("]: ", "): ")  # those lines are as long as the answer
    assert not cut_words([line for line in shown.lines if not any(mark in line for mark in asked)], 80)


@pytest.mark.parametrize(("key", "exit_code", "said"), [(CTRL_C, 130, "interrupted:"), (CTRL_D, 2, "the input ended")])
def test_init_can_be_left_at_each_question(tmp_path, key, exit_code, said):
    records(tmp_path)
    answers = [(MODEL, "org/model"), (DATA, "d.jsonl"), (METHOD, key)]
    shown = allranks_on_terminal("init", columns=80, cwd=tmp_path, answers=answers)
    assert shown.exit_code == exit_code
    last = [line for line in shown.lines if line][-1]
    assert said in last and "no config was written" in last
    assert "Abort" not in shown.text
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("columns", [80, 140])
def test_messages_are_folded_between_words(tmp_path, columns):
    records(tmp_path)
    config = {"base_model": "m", "datasets": [{"path": "d.jsonl", "type": "chat_template"}], "lr_scheduler": "cosin"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "batch_size": 8, "micro_batch_size": 1, "lora_r": 4}))
    shown = allranks_on_terminal("config", "show", "c.yaml", columns=columns, cwd=tmp_path)
    assert shown.exit_code == 2
    assert "\x1b" not in shown.raw
    assert max(map(len, shown.lines)) <= columns
    assert "did you mean" in " ".join(shown.text.split())
