"""Masks from the sizes of tokens: the same as from the library's offsets, for any text, or left to them."""

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from allranks.data import drafts
from allranks.data.drafts import Piece, tokenize
from allranks.data.token_sizes import token_sizes
from tests.unit.data.conftest import CORPUS

PIECES = [
    "It",
    " is",
    "  ",
    " ",
    "\n",
    "\n\n",
    "\t",
    "five. ",
    "é",
    "e\u0301",
    "你好",
    "😀",
    "👩‍👩‍👧",
    "\u3000",
    "\u00a0",
    "<|im_end|>",
    "x",
]
LINES = Regex(r"\s*[\r\n]+ ?|\S+\s?|\s+")  # makes tokens that end in a space


def byte_level(*, normalizer=None, splits=(), trim=None, special=("<|im_end|>",)):
    core = Tokenizer(models.BPE())
    core.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits)
    core.pre_tokenizer = pre_tokenizers.Sequence([*splits, level]) if splits else level
    core.decoder = decoders.ByteLevel()
    if trim is not None:
        core.post_processor = processors.ByteLevel(trim_offsets=trim)
    trainer = trainers.BpeTrainer(
        vocab_size=450, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([*CORPUS, *("It is five. \n It is five.  x \n\n" for _ in range(20))], trainer)
    core.add_special_tokens(list(special))
    return core


KINDS = {
    "plain": {},
    "composed": {"normalizer": normalizers.NFC()},
    "trimmed": {"trim": True},
    "lines": {"splits": [pre_tokenizers.Split(LINES, "isolated")], "trim": False},
    "lines, trimmed": {"splits": [pre_tokenizers.Split(LINES, "isolated")], "trim": True},
    "greedy": {"special": [AddedToken("<|im_end|>", lstrip=True, rstrip=True)]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_that_of_the_offsets(kind, monkeypatch):
    backend = byte_level(**KINDS[kind])
    rng = random.Random(7)
    made = []
    for _ in range(1000):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 12)))
        edges = sorted(rng.choices(range(len(text) + 1), k=2 * rng.randint(1, 3)))
        made.append([Piece(text, trained=list(zip(edges[::2], edges[1::2], strict=True)))])
    assert token_sizes(backend) is not None
    asked = []
    real = drafts._mask
    monkeypatch.setattr(drafts, "_mask", lambda *given: asked.append(given) or real(*given))
    by_sizes = tokenize(made, backend)
    assert len(asked) < 0.7 * len(made), "the sizes answered next to nothing"
    monkeypatch.setattr(drafts, "token_sizes", lambda _: None)
    by_offsets = tokenize(made, backend)
    for (draft,), (ids, mask), (other_ids, other_mask) in zip(made, by_sizes, by_offsets, strict=True):
        assert ids.tolist() == other_ids.tolist() and mask.tolist() == other_mask.tolist(), draft


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": normalizers.Lowercase()},
        {"normalizer": normalizers.Prepend("▁")},
        {"splits": [pre_tokenizers.Split(" ", "removed")]},
        {"splits": [pre_tokenizers.Whitespace()]},
    ],
)
def test_tokens_that_are_no_stretches_of_the_text_are_left_to_the_offsets(change):
    assert token_sizes(byte_level(**change)) is None


def test_other_models_are_left_to_the_offsets():
    assert token_sizes(Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))) is None
    assert token_sizes(Tokenizer(models.BPE())) is None
