"""`type: qwen` gives the labels of Qwen's finetune.py, token by token. The tables are derived by hand."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from allranks.data import prepare
from tests.unit.data.conftest import save_model_folder

WORDS = (
    "<|endoftext|> <|im_start|> <|im_end|> NEWLINE system user assistant You are a helpful assistant. Hi Hello there"
)
WORDS += " How you ? Fine"
IDS = {"\n" if word == "NEWLINE" else word: i for i, word in enumerate(WORDS.split())}

# One line a token; `x` marks those that are labels. The very first token is one in finetune.py too, but no position
# predicts it, so that it counts for nothing.
SYSTEM = """
    <|im_start|>
    system
    NEWLINE
    You
    are
    a
    helpful
    assistant.
    <|im_end|> x
    NEWLINE x
"""
TURNS = """
    <|im_start|> x
    user
    NEWLINE
    Hi
    there
    <|im_end|> x
    NEWLINE x
    <|im_start|> x
    assistant
    NEWLINE
    Hello x
    there x
    <|im_end|> x
    NEWLINE x
    <|im_start|> x
    user
    NEWLINE
    How
    are
    you
    ?
    <|im_end|> x
    NEWLINE x
    <|im_start|> x
    assistant
    NEWLINE
    Fine x
    <|im_end|> x
    NEWLINE x
"""
SAID = [("user", "Hi there"), ("assistant", "Hello there"), ("user", "How are you ?"), ("assistant", "Fine")]


def table(text: str) -> list[tuple[int, int]]:
    """(token, 1 if it is a label) of each line."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    return [(IDS["\n" if row[0] == "NEWLINE" else row[0]], len(row) - 1) for row in rows]


@pytest.fixture
def prepared(make_config, tmp_path):
    core = Tokenizer(models.WordLevel(IDS))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    special = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|endoftext|>", **special)
    folder = save_model_folder(tmp_path / "words", tokenizer)

    def prepared(said, sequence_len=64, **keys) -> list[list[tuple[int, int]]]:
        turns = [{"from": role, "value": text} for role, text in said]
        # One JSON list, as finetune.py reads it.
        (tmp_path / "data.json").write_text(json.dumps([{"id": "1", "conversations": turns}] * 3))
        dataset = {"path": str(tmp_path / "data.json"), "type": "qwen"}
        keys |= {"base_model": str(folder), "chat_template": None, "excess_length_strategy": "truncate"}
        blocks = prepare(make_config(dataset, sequence_len=sequence_len, **keys)).train
        documents = [blocks.document(index) for index in range(blocks.num_documents)]
        return [list(zip(tokens.tolist(), mask.tolist(), strict=True)) for tokens, mask in documents]

    return prepared


def test_tokens_and_labels_of_a_conversation(prepared):
    assert prepared(SAID) == [table(SYSTEM + TURNS)] * 3


def test_a_first_turn_of_the_assistant_is_left_out(prepared):
    assert prepared([("assistant", "Fine"), *SAID]) == [table(SYSTEM + TURNS)] * 3


@pytest.mark.parametrize("length", [39, 38, 25, 16, 10])
def test_what_is_too_long_is_cut_wherever_that_is(length, prepared):
    whole = table(SYSTEM + TURNS)
    assert len(whole) == 39
    # Even the system's end is a label: a sample that is cut before its first answer is still trained.
    assert prepared(SAID, sequence_len=length) == [whole[:length]] * 3


def test_packing_changes_neither_tokens_nor_labels(prepared):
    assert prepared(SAID, sequence_len=128, sample_packing=True) == [table(SYSTEM + TURNS)] * 3


def test_padding_would_be_no_label(prepared):
    """finetune.py pads with <|endoftext|>, which has no label and is not attended to; here it does not exist."""
    assert not any(token == IDS["<|endoftext|>"] for sample in prepared(SAID) for token, _ in sample)
    assert np.sum([label for _, label in table(SYSTEM + TURNS)]) == 17
