"""Where, in a block of bytes, any of a thousand strings stands: by numpy, since Python's `re` takes them one by one.

Only every fourth place is looked at (every second for short strings): of each string, words of four characters are
known such that one of them begins at such a place, wherever the string stands; those that are rarest in ordinary logs.
A table says which words are any string's; of longer strings the words behind must be right, too; and only what is
left is compared. That passes over ordinary lines at some hundred MB/s, whatever the number of strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

_GRAM = 4
_BITS = 20  # of the table's index: 1 MB, which a core's own cache holds; of 6,000 words it lets 0.6 % of others pass
_LOOKED_AT = 40  # characters of a string, for its rarest four
_MOST_WORDS = 3  # of a string that must be right before it is compared
_MIX_64 = 0x9E3779B97F4A7C15  # the same of 64 bits
_MIX = 2654435761  # 2^32 / golden ratio (Knuth's multiplicative hashing)
_BLOCK = 1 << 16  # words at a time, so that what is made of them stays in the cache

# What logs are full of while all is well; its words are poor places to look at.
_ORDINARY = """
2026-01-01 10:00:00,123 [info] [train.py:120] [rank 0] step 100 loss: 1.2345 grad_norm: 0.567 learning_rate: 1e-05
{'loss': 1.2345, 'grad_norm': 0.5, 'learning_rate': 2e-05, 'epoch': 0.12} tokens/s samples per second time memory
node0:123:456 [0] nccl info channel 00/0 : 0[0] -> 1[0] [send] via net/ib/0/gdrdma comm 0x5f rank 0 nranks 8 cudadev 0
nccl info net/ib : using [0]mlx5_0:1/ib [ro]; oob eth0:10.0.0.4<0> nccl info ring 00 tree trees connected all rings
12%|####      | 12/100 [00:12<01:23, 1.20s/it] 12.3it/s loading checkpoint shards: 100% map (num_proc=8): 100% examples
warning: futurewarning userwarning is deprecated and will be removed in a future version please use instead
/usr/lib/python3.11/site-packages/torch/nn/modules/module.py line in the file "" the for not error none true false
[rank0]: default0 model config parameters device cuda data dataset batch size training process group init start
checkpoint.py requires_grad=true require requirement document documents shard batch of gradient checkpointing utils.py
site-packages/torch/utils/checkpoint.py dist-packages version using returned failed error exited port state
saving model checkpoint to saved in optimizer world size master addr port torch distributed run elastic launch
"""


class Needles:
    """The strings, each with what it stands for. They have five characters at least."""

    def __init__(self, targets: Mapping[str, Iterable[int]]) -> None:
        import numpy

        self._np = numpy
        self.longest = max(map(len, targets), default=0)
        common = Counter(_ORDINARY[at : at + _GRAM] for at in range(len(_ORDINARY) - _GRAM))
        self._by_key: dict[int, list[tuple[int, bytes, tuple[int, ...]]]] = {}
        self._passes = [_Pass(numpy, 0), _Pass(numpy, 2)]
        for text, of in targets.items():
            needle, numbers = text.encode(), tuple(of)
            step = _GRAM if len(needle) >= 2 * _GRAM - 1 else 2
            for rest in range(step):
                at = _rarest(text, rest, step, common)
                words = [_word(needle, one) for one in range(at, len(needle) - _GRAM + 1, _GRAM)][:_MOST_WORDS]
                self._by_key.setdefault(_key(words), []).append((at, needle, numbers))
                for one in self._passes[: 1 if step == _GRAM else 2]:
                    one.add(words)
        for one in self._passes:
            one.close()

    def candidates(self, folded: bytes) -> list[tuple[int, int]]:
        """(place, key of the words there), in order: where a string of ours may stand in lower-case bytes."""
        np = self._np
        padded = folded + bytes(-len(folded) % _GRAM + (_MOST_WORDS + 1) * _GRAM)
        found = [part for one in self._passes for part in one.candidates(padded)]
        if not found:
            return []
        places = np.concatenate([where for where, _ in found])
        keys = np.concatenate([what for _, what in found])
        order = np.argsort(places, kind="stable")
        return list(zip(places[order].tolist(), keys[order].tolist(), strict=True))

    def keys_of_none_but(self, numbers: frozenset[int]) -> frozenset[int]:
        """The keys of all strings that stand for nothing but these."""
        return frozenset(
            key for key, found in self._by_key.items() if all(numbers.issuperset(of) for _, _, of in found)
        )

    def at(self, key: int) -> Sequence[tuple[int, bytes, tuple[int, ...]]]:
        """(how far before the place it begins, string, what it stands for) of all with that key."""
        return self._by_key.get(key, ())


class _Pass:
    """Over the words that begin at every fourth place, `shift` and so on."""

    def __init__(self, np: ModuleType, shift: int) -> None:
        self._np, self._shift = np, shift
        self._added: set[tuple[int, ...]] = set()

    def add(self, words: Sequence[int]) -> None:
        self._added.add(tuple(words))

    def close(self) -> None:
        np = self._np
        self._words = np.array(sorted({words[0] for words in self._added}), dtype=np.uint32)
        self._keys = [
            np.array(sorted({_key(words) for words in self._added if len(words) == count}), dtype=np.uint64)
            for count in range(1, _MOST_WORDS + 1)
        ]
        self._table = np.zeros(1 << _BITS, dtype=bool)
        self._table[self._index(self._words)] = True

    def _index(self, words: np.ndarray) -> np.ndarray:
        return (words * self._np.uint32(_MIX)) >> self._np.uint32(32 - _BITS)

    def candidates(self, padded: bytes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(places, keys) for each number of words."""
        np = self._np
        whole = np.frombuffer(padded, dtype="<u4", offset=self._shift, count=(len(padded) - self._shift) // _GRAM)
        last = len(whole) - _MOST_WORDS
        for first in range(0, last if self._words.size else 0, _BLOCK):
            found = np.flatnonzero(self._table[self._index(whole[first : min(first + _BLOCK, last)])]) + first
            found = found[self._is_in(whole[found], self._words)]
            key = np.zeros(len(found), dtype=np.uint64)
            for count, keys in enumerate(self._keys):
                key = (key + whole[found + count] + np.uint64(1)) * np.uint64(_MIX_64)
                right = self._is_in(key, keys)
                if right.any():
                    yield found[right] * _GRAM + self._shift, key[right]

    def _is_in(self, values: np.ndarray, known: np.ndarray) -> np.ndarray:
        np = self._np
        if not known.size:
            return np.zeros(len(values), dtype=bool)
        return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def _key(words: Sequence[int]) -> int:
    """One number of 64 bits for them; two that share it are told apart by the strings themselves."""
    key = 0
    for word in words:
        key = (key + word + 1) * _MIX_64 % 2**64
    return key


def _word(needle: bytes, at: int) -> int:
    return int.from_bytes(needle[at : at + _GRAM], "little")


def _rarest(text: str, rest: int, step: int, common: Counter[str]) -> int:
    """Where, at a distance from the start that leaves `rest`, the words begin that ordinary logs have least; best with
    as many behind them as are looked at."""

    def often(at: int) -> tuple[int, int, int]:
        words = [text[one : one + _GRAM] for one in range(at, at + _MOST_WORDS * _GRAM, _GRAM)]
        return sum(len(word) < _GRAM for word in words), sum(common[word] for word in words), at

    return min(range(rest, min(len(text), _LOOKED_AT) - _GRAM + 1, step), key=often)
