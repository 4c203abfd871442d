"""Masks from the sizes of tokens, for tokenizers whose tokens are stretches of the text's bytes.

In a byte-level BPE each token stands for bytes that are known from the vocabulary, and one after the other they are the
text. So where a token lies follows from the ids alone, without the offsets that the library computes for every token at
about the cost of the tokens themselves. What does not fit exactly is left to the offsets.
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

_SPACE = "Ġ"  # how byte-level vocabularies write a space
_STEPS = ("normalizer", "pre_tokenizer", "post_processor")
_WHOLE = {"ByteLevel", "Split", "Digits"}  # pre-tokenizers that can leave every character where it is


@dataclass(frozen=True)
class TokenSizes:
    """Bytes of each token, int64[V] (0: unknown), and which end in a space that offsets may leave out, bool[V]."""

    num_bytes: np.ndarray
    ends_in_space: np.ndarray
    normalizes: bool

    def mask(self, ids: np.ndarray, text: str, ranges: Sequence[tuple[int, int]]) -> np.ndarray | None:
        """uint8[n]: 1 for the tokens that hold a character of a range; None if only offsets can say it."""
        is_ascii = text.isascii()
        if self.normalizes and not is_ascii and not unicodedata.is_normalized("NFC", text):
            return None
        sizes = self.num_bytes[ids]
        ends = np.cumsum(sizes)
        total = len(text) if is_ascii else len(text.encode("utf-8", "surrogatepass"))
        if not ids.size or ends[-1] != total or not sizes.all():
            return None
        borders = np.array([edge for one in ranges for edge in one], np.int64)
        if not is_ascii:
            borders = _in_bytes(text, borders)
        # The token that holds the last byte before a border; where it ends in a space, offsets have an opinion.
        before = np.searchsorted(ends, borders - 1, side="right")
        if self.ends_in_space[ids[before[borders > 0]]].any():
            return None
        mask = np.zeros(ids.size, np.uint8)
        first = np.searchsorted(ends, borders[0::2], side="right")
        for start, last, empty in zip(
            first.tolist(), before[1::2].tolist(), borders[0::2] == borders[1::2], strict=True
        ):
            if not empty:
                mask[start : last + 1] = 1
        return mask


def token_sizes(backend: Any) -> TokenSizes | None:
    """The sizes of a `tokenizers.Tokenizer`'s tokens; None for one whose tokens are no stretches of the text."""
    return _token_sizes(backend, backend.get_vocab_size(with_added_tokens=True))


@lru_cache(maxsize=2)
def _token_sizes(backend: Any, vocab_size: int) -> TokenSizes | None:
    from tokenizers import models, pre_tokenizers

    model = backend.model
    normalizers, splits, processors = (_steps(getattr(backend, name)) for name in _STEPS)
    levels = [step for step in splits if step["type"] == "ByteLevel"]
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if (
        not isinstance(model, models.BPE)
        or model.dropout
        or model.continuing_subword_prefix
        or model.end_of_word_suffix
        or not alphabet <= vocabulary.keys()  # else the model leaves bytes out
        or any(step["type"] != "NFC" for step in normalizers)
        or any(step["type"] not in _WHOLE or step.get("behavior") == "Removed" for step in splits)
        or [step["add_prefix_space"] for step in levels] != [False]
        or any(step["type"] not in ("ByteLevel", "TemplateProcessing") for step in processors)
    ):
        return None
    trims = any(step.get("trim_offsets") for step in processors)
    num_bytes = np.zeros(max(vocabulary.values()) + 1, np.int64)
    ends_in_space = np.zeros(num_bytes.size, bool)
    for token, index in vocabulary.items():
        num_bytes[index] = len(token) if alphabet.issuperset(token) else 0
        ends_in_space[index] = trims and token[-1:] == _SPACE
    for index, added in backend.get_added_tokens_decoder().items():
        num_bytes[index] = len(added.content.encode())
        ends_in_space[index] = trims and added.content[-1:].isspace()
    return TokenSizes(num_bytes, ends_in_space, bool(normalizers))


def _steps(part: Any) -> list[dict[str, Any]]:
    """What a normalizer, pre-tokenizer or post-processor consists of, as tokenizer.json has it."""
    if part is None:
        return []
    written = json.loads(part.__getstate__())
    if written["type"] != "Sequence":
        return [written]
    return next(value for value in written.values() if isinstance(value, list))


def _in_bytes(text: str, borders: np.ndarray) -> np.ndarray:
    found, at, num_bytes = {0: 0}, 0, 0
    for border in sorted(set(borders.tolist())):
        num_bytes += len(text[at:border].encode("utf-8", "surrogatepass"))
        found[border], at = num_bytes, border
    return np.array([found[border] for border in borders.tolist()], np.int64)
