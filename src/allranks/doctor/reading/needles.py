"""Where, in a block of bytes, any of a thousand strings stands: by numpy, since Python's `re` takes them one by one.

Of every string the four characters are looked for that are rarest in ordinary logs; of these words of 32 bits a table
says which are any string's, and only where one stands are strings compared. That passes over ordinary lines at some
hundred MB/s, whatever the number of strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_GRAM = 4
_BITS = 20  # of the table's index: 1 MB, which a core's own cache holds; of 2,000 words it lets 0.2 % of others pass
_LOOKED_AT = 40  # characters of a string, for its rarest four
_MIX = 2654435761  # 2^32 / golden ratio (Knuth's multiplicative hashing)
_MOST_ORDINARY = 256  # places of what ordinary lines have
_BLOCK = 1 << 18  # bytes at a time, so that what is made of them stays in the cache

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
saving model checkpoint to saved in optimizer world size master addr port torch distributed run elastic launch
"""


class Needles:
    """The strings, each with what it stands for. `ordinary` is what many lines have: of it the last ones suffice."""

    def __init__(self, targets: Mapping[str, Iterable[int]], ordinary: frozenset[int] = frozenset()) -> None:
        import numpy

        self._np = numpy
        by_gram: dict[int, list[tuple[int, bytes, tuple[int, ...]]]] = {}
        common = Counter(_ORDINARY[at : at + _GRAM] for at in range(len(_ORDINARY) - _GRAM))
        letters = Counter(_ORDINARY)
        for text, of in targets.items():
            needle = text.encode()
            at = _rarest(text, common, letters)
            word = int.from_bytes(needle[at : at + _GRAM], "little")
            by_gram.setdefault(word, []).append((at, needle, tuple(of)))
        self.longest = max(map(len, targets), default=0)
        self._by_gram = by_gram
        self._is_ordinary = numpy.array(
            [all(ordinary.issuperset(of) for _, _, of in by_gram[word]) for word in sorted(by_gram)], dtype=bool
        )
        self._words = numpy.array(sorted(by_gram), dtype=numpy.uint32)
        self._table = numpy.zeros(1 << _BITS, dtype=bool)
        self._table[self._index(self._words)] = True

    def _index(self, words: np.ndarray) -> np.ndarray:
        return (words * self._np.uint32(_MIX)) >> self._np.uint32(32 - _BITS)

    def candidates(self, folded: bytes) -> list[tuple[int, int]]:
        """(place, word there) in the order of places: where a string of ours may stand in lower-case bytes."""
        np = self._np
        places, words, ordinary = [], [], []
        for start in range(0, len(folded), _BLOCK):
            for shift in range(_GRAM):
                first = start + shift
                count = (min(len(folded), start + _BLOCK + _GRAM - 1) - first) // _GRAM
                if count <= 0:
                    continue
                view = np.frombuffer(folded, dtype="<u4", count=count, offset=first)
                found = np.flatnonzero(self._table[self._index(view)])
                if not found.size:
                    continue
                values = view[found]
                at = np.minimum(np.searchsorted(self._words, values), len(self._words) - 1)
                known = self._words[at] == values
                places.append(found[known] * _GRAM + first)
                words.append(values[known])
                ordinary.append(self._is_ordinary[at[known]])
        if not places:
            return []
        every, what, is_ordinary = np.concatenate(places), np.concatenate(words), np.concatenate(ordinary)
        order = np.argsort(every, kind="stable")
        kept = ~is_ordinary[order]
        kept[np.flatnonzero(~kept)[-_MOST_ORDINARY:]] = True
        order = order[kept]
        return list(zip(every[order].tolist(), what[order].tolist(), strict=True))

    def verified(self, folded: bytes, place: int, word: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """(start, end, what it stands for) of every string that stands at this candidate."""
        for at, needle, of in self._by_gram[word]:
            start = place - at
            if start >= 0 and folded.startswith(needle, start):
                yield start, start + len(needle), of


def _rarest(text: str, common: Counter[str], letters: Counter[str]) -> int:
    """Where the four characters begin that ordinary logs have least."""

    def often(at: int) -> tuple[int, int]:
        gram = text[at : at + _GRAM]
        return common[gram], sum(letters[char] for char in gram)

    return min(range(min(len(text) - _GRAM + 1, _LOOKED_AT)), key=often)
