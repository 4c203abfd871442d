"""The demo's files: real data, a tokenizer that round-trips, a model that loads, the same files every time."""

import json

import pytest
import yaml

from allranks.demo import write_files
from allranks.demo.docstrings import question_answer_pairs
from allranks.errors import DataError, UsageError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("demo"), num_records=50, vocab_size=512, hidden_size=64, num_layers=2)


def test_the_corpus_is_thousands_of_real_pairs():
    pairs = question_answer_pairs()
    assert len(pairs) > 2000
    assert len(set(pairs)) == len(pairs)
    answers = {answer for question, answer in pairs if "os.path.join" in question}
    assert any("path" in answer for answer in answers)
    assert not any(answer.startswith("getopt(") for _, answer in pairs)


def test_a_library_without_sources_is_refused(tmp_path):
    with pytest.raises(DataError, match="without sources"):
        question_answer_pairs(stdlib=tmp_path)


def test_pairs_come_from_public_names_only(tmp_path):
    (tmp_path / "tools.py").write_text(
        '"""Tools for everything."""\n'
        "def hammer():\n    '''Hit a nail.'''\n"
        "def _secret():\n    '''Never told to anyone.'''\n"
        "class Saw:\n    '''Cuts things.'''\n"
        "    def cut(self):\n        '''cut(thing) -> parts\n\n        Cut it now.'''\n"
    )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_tools.py").write_text("'''Tests, not documentation.'''")
    pairs = question_answer_pairs(phrasings=1, stdlib=tmp_path)
    assert [answer for _, answer in pairs] == ["Tools for everything.", "Hit a nail.", "Cuts things.", "Cut it now."]
    questions = {question for question, _ in question_answer_pairs(phrasings=3, stdlib=tmp_path)}
    assert len(questions) == 12
    assert {"What does tools.hammer do?", "What is tools.Saw?", "Explain tools.Saw.cut."} <= questions


def test_tokenizer_marks_what_the_assistant_says(demo):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.model)
    messages = [
        {"role": "user", "content": "What is x?"},
        {"role": "assistant", "content": "It  is — a\nletter."},
    ]
    encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    said = [token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(said) == "It  is — a\nletter.<|im_end|>"
    assert tokenizer.decode(encoded["input_ids"]) == (
        "<|im_start|>user\nWhat is x?<|im_end|>\n<|im_start|>assistant\nIt  is — a\nletter.<|im_end|>\n"
    )
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_model_loads_with_the_tokenizer_it_goes_with(demo):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(demo.model)
    tokenizer = AutoTokenizer.from_pretrained(demo.model)
    assert model.config.model_type == "qwen3"
    assert model.num_parameters() == demo.num_parameters
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 512
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_config_names_the_files(demo):
    config = yaml.safe_load(demo.config.read_text())
    assert config["base_model"] == str(demo.model)
    assert config["datasets"][0]["path"] == str(demo.data)
    records = [json.loads(line) for line in demo.data.read_text().splitlines()]
    assert len(records) == demo.num_records == 50
    assert [turn["role"] for turn in records[0]["messages"]] == ["user", "assistant"]


def test_config_is_one_that_allranks_accepts(demo):
    from allranks.config import load_config

    config = load_config(demo.config)
    assert config.model.base_model == str(demo.model)
    assert config.parallel.uses_fsdp


def test_same_arguments_give_the_same_files(demo, tmp_path):
    again = write_files(tmp_path, num_records=50, vocab_size=512, hidden_size=64, num_layers=2)
    assert again.data.read_bytes() == demo.data.read_bytes()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again.model / name).read_bytes() == (demo.model / name).read_bytes(), name


def test_an_edited_config_is_not_overwritten(demo):
    with pytest.raises(UsageError, match="exists already"):
        write_files(demo.directory)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write into"):
        write_files(tmp_path / "file" / "demo")
