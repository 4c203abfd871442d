"""A sample between its format and its tokens: pieces of text with what is trained in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from allranks.errors import DataError


@dataclass(frozen=True)
class Piece:
    """A stretch of a sample that is tokenized on its own.

    trained: all of it (True), none (False), or the character ranges [start, stop) that are.
    ids: given instead of text where the tokens are known.
    """

    text: str = ""
    trained: bool | Sequence[tuple[int, int]] = False
    ids: tuple[int, ...] | None = None


Draft = list[Piece]


def tokenize(drafts: Sequence[Draft], tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens uint32[n] and mask uint8[n] of each draft, all texts in one batch. A first token is never a target.

    A token belongs to a trained range if it holds at least one of its characters.
    """
    texts = [piece.text for piece in chain.from_iterable(drafts) if piece.ids is None]
    encodings = iter(_encode(tokenizer, texts, offsets=any(_has_ranges(p) for p in chain.from_iterable(drafts))))
    samples = []
    for draft in drafts:
        ids: list[int] = []
        mask: list[Any] = []
        for piece in draft:
            if piece.ids is not None:
                piece_ids, offsets = list(piece.ids), None
            else:
                piece_ids, offsets = next(encodings)
            ids += piece_ids
            if isinstance(piece.trained, bool):
                mask.append(np.full(len(piece_ids), piece.trained, np.uint8))
            else:
                mask.append(_mask(offsets, piece.trained, len(piece.text)))
        tokens = np.array(ids, dtype=np.uint32)
        targets = np.concatenate(mask) if mask else np.empty(0, np.uint8)
        targets[:1] = 0
        samples.append((tokens, targets))
    return samples


def _has_ranges(piece: Piece) -> bool:
    return not isinstance(piece.trained, bool)


def _encode(tokenizer: Any, texts: list[str], offsets: bool) -> list[tuple[list[int], Any]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        if offsets:
            raise DataError(
                f"the tokenizer {type(tokenizer).__name__} does not say which token comes from which character, so "
                "that turns of a chat template cannot be told apart; use a model with a fast tokenizer (tokenizer.json)"
            )
        return [(tokenizer(text, add_special_tokens=False)["input_ids"], None) for text in texts]
    # A tokenizer.json may carry padding and truncation of its own; they are no part of the text.
    backend.no_padding()
    backend.no_truncation()
    encode = backend.encode_batch if offsets else backend.encode_batch_fast
    encoded = encode(texts, add_special_tokens=False)
    return [(one.ids, one.offsets if offsets else None) for one in encoded]


def _mask(offsets: Any, ranges: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """uint8[n]: 1 for the tokens that hold a character of a trained range.

    Some tokenizers leave white space out of the offsets; a token is taken to begin where the text before it ended.
    """
    if not offsets:
        return np.empty(0, np.uint8)
    starts, stops = np.array(offsets, dtype=np.int64).T
    ends = np.maximum.accumulate(stops)
    starts = np.minimum(starts, np.concatenate(([0], ends[:-1])))
    trained = np.zeros(length + 1, np.int64)
    for start, stop in ranges:
        trained[start:stop] = 1
    before = np.concatenate(([0], np.cumsum(trained)))  # trained characters before each position
    return (before[stops] > before[starts]).astype(np.uint8)
