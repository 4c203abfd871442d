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
from itertools import chain
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

    def masks(
        self, ids: Sequence[np.ndarray], texts: Sequence[str], ranges: Sequence[Sequence[tuple[int, int]]]
    ) -> list[np.ndarray | None]:
        """For each text a mask uint8[n]: 1 for the tokens that hold a character of a range.

        None if only offsets can say it. All texts go through numpy together: one by one, its calls cost more than the
        work in them.
        """
        masks: list[np.ndarray | None] = [None] * len(texts)
        which = [i for i, text in enumerate(texts) if ids[i].size and self._keeps(text)]
        if not which:
            return masks
        tokens = np.concatenate([ids[i] for i in which])
        stops = np.cumsum([ids[i].size for i in which])
        starts = np.concatenate(([0], stops[:-1]))
        sizes = self.num_bytes[tokens]
        ends = np.cumsum(sizes)  # in bytes, through all texts
        bases = ends[starts] - sizes[starts]
        totals = [
            len(texts[i]) if texts[i].isascii() else len(texts[i].encode("utf-8", "surrogatepass")) for i in which
        ]
        fits = (ends[stops - 1] - bases == totals) & np.logical_and.reduceat(sizes > 0, starts)

        # Those that do not fit would reach into the tokens of others.
        in_text = [_in_bytes(texts[i], ranges[i]) if fit else [] for i, fit in zip(which, fits, strict=True)]
        owners = np.repeat(np.arange(len(which)), [len(edges) for edges in in_text])
        borders = np.array(list(chain.from_iterable(in_text)), np.int64)
        places = borders + bases[owners]
        # The token that holds the last byte before a border; where it ends in a space, offsets have an opinion.
        before = np.searchsorted(ends, places - 1, side="right")
        fits[owners[self.ends_in_space[tokens[before]] & (borders > 0)]] = False
        first = np.searchsorted(ends, places[0::2], side="right")
        opened = np.zeros(tokens.size + 1, np.int32)  # ranges that begin at a token less those that end before it
        is_range = borders[0::2] < borders[1::2]
        np.add.at(opened, first[is_range], 1)
        np.add.at(opened, before[1::2][is_range] + 1, -1)
        trained = (np.cumsum(opened[:-1]) > 0).astype(np.uint8)
        for i, start, stop, is_exact in zip(which, starts.tolist(), stops.tolist(), fits.tolist(), strict=True):
            masks[i] = trained[start:stop] if is_exact else None
        return masks

    def _keeps(self, text: str) -> bool:
        """Whether the tokenizer leaves the text's characters as they are."""
        return not self.normalizes or text.isascii() or unicodedata.is_normalized("NFC", text)


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


def _in_bytes(text: str, ranges: Sequence[tuple[int, int]]) -> list[int]:
    """The borders of character ranges, one after the other, in bytes."""
    borders = list(chain.from_iterable(ranges))
    if text.isascii():
        return borders
    found, at, num_bytes = {0: 0}, 0, 0
    for border in sorted(set(borders)):
        num_bytes += len(text[at:border].encode("utf-8", "surrogatepass"))
        found[border], at = num_bytes, border
    return [found[border] for border in borders]
