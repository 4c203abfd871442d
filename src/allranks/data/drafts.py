"""A sample between its format and its tokens: pieces of text with what is trained in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from allranks.data.token_sizes import token_sizes
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

    A token belongs to a trained range if it holds at least one of its characters. `tokenizer` is one of transformers'
    or, of a fast one, the `tokenizers.Tokenizer` in it.
    """
    encoded = iter(_encode(tokenizer, [p for p in chain.from_iterable(drafts) if p.ids is None]))
    samples = []
    for draft in drafts:
        parts = [_known(piece) if piece.ids is not None else next(encoded) for piece in draft]
        tokens = np.concatenate([ids for ids, _ in parts]) if parts else np.empty(0, np.uint32)
        targets = np.concatenate([mask for _, mask in parts]) if parts else np.empty(0, np.uint8)
        targets[:1] = 0
        samples.append((tokens, targets))
    return samples


def _known(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array(piece.ids, np.uint32)
    return ids, np.full(ids.size, bool(piece.trained), np.uint8)


def _encode(tokenizer: Any, pieces: Sequence[Piece]) -> list[tuple[np.ndarray, np.ndarray]]:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer if hasattr(tokenizer, "encode_batch_fast") else None)
    if backend is None:
        if any(_has_ranges(piece) for piece in pieces):
            raise DataError(
                f"the tokenizer {type(tokenizer).__name__} does not say which token comes from which character, so "
                "that turns of a chat template cannot be told apart; use a model with a fast tokenizer (tokenizer.json)"
            )
        found = (np.array(tokenizer(piece.text, add_special_tokens=False)["input_ids"], np.uint32) for piece in pieces)
        return [(ids, np.full(ids.size, piece.trained, np.uint8)) for ids, piece in zip(found, pieces, strict=True)]
    # A tokenizer.json may carry padding and truncation of its own; they are no part of the text.
    backend.no_padding()
    backend.no_truncation()
    sizes = token_sizes(backend) if any(_has_ranges(piece) for piece in pieces) else None
    # Offsets cost as much again as the tokens: where the tokens' sizes say the same, they are not asked for.
    by_offsets = [sizes is None and _has_ranges(piece) for piece in pieces]
    encoded: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(pieces)
    fast = [i for i, slow in enumerate(by_offsets) if not slow]
    found_ids = {
        i: np.array(one.ids, np.uint32)
        for i, one in zip(fast, _batch(backend.encode_batch_fast, pieces, fast), strict=True)
    }
    in_ranges: dict[int, Sequence[tuple[int, int]]] = {}
    for i, ids in found_ids.items():
        trained = pieces[i].trained
        if isinstance(trained, bool):
            encoded[i] = ids, np.full(ids.size, trained, np.uint8)
        else:
            in_ranges[i] = trained
    if sizes is not None:
        texts = [pieces[i].text for i in in_ranges]
        masks = sizes.masks([found_ids[i] for i in in_ranges], texts, list(in_ranges.values()))
        for i, mask in zip(in_ranges, masks, strict=True):
            encoded[i] = None if mask is None else (found_ids[i], mask)
    left = [i for i, one in enumerate(encoded) if one is None]
    for i, one in zip(left, _batch(backend.encode_batch, pieces, left), strict=True):
        trained = pieces[i].trained
        assert not isinstance(trained, bool)
        encoded[i] = np.array(one.ids, np.uint32), _mask(one.offsets, trained, len(pieces[i].text))
    return [one for one in encoded if one is not None]


def _batch(encode: Any, pieces: Sequence[Piece], which: list[int]) -> Any:
    return encode([pieces[i].text for i in which], add_special_tokens=False) if which else []


def _has_ranges(piece: Piece) -> bool:
    return not isinstance(piece.trained, bool)


def _mask(offsets: Any, ranges: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """uint8[n]: 1 for the tokens that hold a character of a trained range.

    Some tokenizers leave white space out of the offsets; a token is taken to begin where the text before it ended.
    """
    if not offsets:
        return np.empty(0, np.uint8)
    starts, stops = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2).T
    ends = np.maximum.accumulate(stops)
    starts = np.minimum(starts, np.concatenate(([0], ends[:-1])))
    trained = np.zeros(length, np.uint8)
    for start, stop in ranges:
        trained[start:stop] = 1
    before = np.zeros(length + 1, np.int32)  # trained characters before each position
    np.cumsum(trained, out=before[1:])
    return (before[stops] > before[starts]).astype(np.uint8)
