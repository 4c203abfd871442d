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
_FEW = 32  # places: so many Python compares as fast as numpy
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
        self._strings: list[tuple[bytes, tuple[int, ...]]] = []
        self._by_key: dict[int, list[tuple[int, int]]] = {}
        self._passes = [_Pass(numpy, 0), _Pass(numpy, 2)]
        for number, (text, of) in enumerate(targets.items()):
            needle = text.encode()
            self._strings.append((needle, tuple(of)))
            step = _GRAM if len(needle) >= 2 * _GRAM - 1 else 2
            for at in _rarest(text, step, common):
                words = [_word(needle, one) for one in range(at, len(needle) - _GRAM + 1, _GRAM)][:_MOST_WORDS]
                self._by_key.setdefault(_key(words), []).append((at, number))
                for one in self._passes[: 1 if step == _GRAM else 2]:
                    one.add(words)
        for one in self._passes:
            one.close()

    def __getitem__(self, number: int) -> tuple[bytes, tuple[int, ...]]:
        """A string, and what it stands for."""
        return self._strings[number]

    def found(
        self, folded: bytes, since: int, until: int, only_last: frozenset[int] = frozenset()
    ) -> list[tuple[int, int]]:
        """(where it begins, number) of each string that stands in lower-case bytes and begins from `since` to before
        `until`, in order; of the strings `only_last` the last place."""
        np = self._np
        padded = folded + bytes(-len(folded) % _GRAM + (_MOST_WORDS + 1) * _GRAM)
        parts = [part for one in self._passes for part in one.candidates(padded)]
        if not parts:
            return []
        keys = np.concatenate([what for _, what in parts])
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], np.concatenate([where for where, _ in parts])[order]
        begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        letters = np.frombuffer(padded, dtype=np.uint8)
        found: set[tuple[int, int]] = set()
        last: dict[int, int] = {}
        for key, here in zip(keys[begins].tolist(), np.split(places, begins[1:]), strict=True):
            for before, number in self._by_key.get(key, ()):
                needle = self._strings[number][0]
                if len(here) < _FEW and number not in only_last:
                    found.update(
                        (start, number)
                        for place in here.tolist()
                        if since <= (start := place - before) < until and folded.startswith(needle, start)
                    )
                    continue
                starts = here - before
                starts = starts[(starts >= since) & (starts < min(until, len(folded) - len(needle) + 1))]
                starts = _standing(letters, starts, needle)
                if number not in only_last:
                    found.update((start, number) for start in starts.tolist())
                elif len(starts):
                    last[number] = max(last.get(number, 0), int(starts.max()))
        found.update((start, number) for number, start in last.items())
        return sorted(found)

    def of_none_but(self, numbers: frozenset[int]) -> frozenset[int]:
        """The strings that stand for nothing but these."""
        return frozenset(at for at, (_, of) in enumerate(self._strings) if numbers.issuperset(of))


def _standing(letters: np.ndarray, starts: np.ndarray, needle: bytes) -> np.ndarray:
    """Those of `starts` at which the string does stand. Its end is compared first: what begins a string rightly, such
    as `checkpoint` in `checkpoint.py`, is told apart there."""
    for at in range(len(needle) - 1, -1, -1):
        if not len(starts):
            break
        starts = starts[letters[starts + at] == needle[at]]
    return starts


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
        self._table = np.zeros(1 << _BITS, dtype=bool)
        self._table[self._index(self._words)] = True
        self._keys = []
        for count in range(1, _MOST_WORDS + 1):
            keys = np.array(sorted({_key(words) for words in self._added if len(words) == count}), dtype=np.uint64)
            table = np.zeros(1 << _BITS, dtype=bool)
            table[keys >> np.uint64(64 - _BITS)] = True
            self._keys.append((keys, table))

    def _index(self, words: np.ndarray) -> np.ndarray:
        return (words * self._np.uint32(_MIX)) >> self._np.uint32(32 - _BITS)

    def candidates(self, padded: bytes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(places, keys) for each number of words."""
        np = self._np
        whole = np.frombuffer(padded, dtype="<u4", offset=self._shift, count=(len(padded) - self._shift) // _GRAM)
        last = len(whole) - _MOST_WORDS
        for first in range(0, last if self._words.size else 0, _BLOCK):
            found = np.flatnonzero(self._table[self._index(whole[first : min(first + _BLOCK, last)])]) + first
            key = np.zeros(len(found), dtype=np.uint64)
            for count, (keys, table) in enumerate(self._keys):
                key = (key + whole[found + count] + np.uint64(1)) * np.uint64(_MIX_64)
                # Whether it is one of ours: a table tells of nearly all others that they are not, in no time.
                maybe = np.flatnonzero(table[key >> np.uint64(64 - _BITS)])
                right = maybe[self._is_in(key[maybe], keys)] if len(maybe) else maybe
                if len(right):
                    yield found[right] * _GRAM + self._shift, key[right]

    def _is_in(self, values: np.ndarray, known: np.ndarray) -> np.ndarray:
        np = self._np
        return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def _key(words: Sequence[int]) -> int:
    """One number of 64 bits for them; two that share it are told apart by the strings themselves."""
    key = 0
    for word in words:
        key = (key + word + 1) * _MIX_64 % 2**64
    return key


def _word(needle: bytes, at: int) -> int:
    return int.from_bytes(needle[at : at + _GRAM], "little")


def _rarest(text: str, step: int, common: Counter[str]) -> list[int]:
    """For each rest by `step`: where, at a distance from the start that leaves it, the words begin that ordinary logs
    have least; best with as many behind them as are looked at."""
    size = min(len(text), _LOOKED_AT)
    often = [common[text[at : at + _GRAM]] for at in range(size + (_MOST_WORDS - 1) * _GRAM)]

    def cost(at: int) -> tuple[int, int, int]:
        whole = (len(text) - at) // _GRAM
        return -min(whole, _MOST_WORDS), sum(often[at : at + _MOST_WORDS * _GRAM : _GRAM]), at

    return [min(range(rest, size - _GRAM + 1, step), key=cost) for rest in range(step)]
