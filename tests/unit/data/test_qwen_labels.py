"""`type: qwen` gives the labels of Qwen's finetune.py, token by token. The tables are derived by hand."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from allranks.data import BlockSet, collate, prepare
from allranks.model.batch import to_device
from allranks.model.build import build_model
from tests.tiny_models import config_for, one_process, saved_model
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
def blocks(make_config, tmp_path):
    core = Tokenizer(models.WordLevel(IDS))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    special = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|endoftext|>", **special)
    folder = save_model_folder(tmp_path / "words", tokenizer)

    def blocks(conversations, sequence_len=64, **keys) -> BlockSet:
        turns = [[{"from": role, "value": text} for role, text in said] for said in conversations]
        # One JSON list, as finetune.py reads it.
        (tmp_path / "data.json").write_text(
            json.dumps([{"id": str(i), "conversations": t} for i, t in enumerate(turns)])
        )
        dataset = {"path": str(tmp_path / "data.json"), "type": "qwen"}
        keys |= {"base_model": str(folder), "chat_template": None, "excess_length_strategy": "truncate"}
        return prepare(make_config(dataset, sequence_len=sequence_len, **keys)).train

    return blocks


@pytest.fixture
def prepared(blocks):
    def prepared(said, sequence_len=64, **keys) -> list[list[tuple[int, int]]]:
        """(token, label?) of each document of a data set that has the conversation three times."""
        made = blocks([said] * 3, sequence_len, **keys)
        documents = [made.document(index) for index in range(made.num_documents)]
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


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_that_of_finetunes_padded_rows(packing, blocks):
    """finetune.py pads each row with <|endoftext|>, which has no label and is not attended to; here is no padding."""
    samples = [table(SYSTEM + TURNS), table(SYSTEM + TURNS)[:24]]
    padded = [[*sample, *[(IDS["<|endoftext|>"], 0)] * (48 - len(sample))] for sample in samples]
    tokens, is_label = torch.tensor(padded).unbind(-1)
    labels = tokens.masked_fill(is_label == 0, -100)
    model = AutoModelForCausalLM.from_pretrained(saved_model("qwen3"))
    mean = model(tokens, attention_mask=tokens.ne(IDS["<|endoftext|>"]), labels=labels).loss
    theirs = mean * (labels[:, 1:] != -100).sum()

    made = blocks([SAID, SAID[:2]], sequence_len=96, sample_packing=packing)
    assert len(made) == (1 if packing else 2)
    batch = to_device(collate(made, range(len(made)), pad_to=None), torch.device("cpu"))
    ours = build_model(config_for(saved_model("qwen3")), one_process()).forward_loss(batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
