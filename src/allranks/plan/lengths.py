"""How long the rows are that a run is given, and the documents in them: as prepared, or as long as they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from allranks.plan.workload import Workload

_STEP = 1.25
"""Documents whose lengths differ by no more than this many times are counted as equally long."""
_MOST_SIZES = 4096


@dataclass(frozen=True)
class Lengths:
    """Tokens of blocks. `longest`, `usual`: of one block in the longest and in the usual micro-batch, padding included;
    `mean` without it. `labelled`: part of the tokens that has a label. `num_blocks`: of an epoch; None where there is
    no data yet. `documents`: (tokens of a document, how many a block holds in the mean); none where nothing is known.
    `sizes`: of blocks, or of every so many of them, the longest first; none where all are as long.
    """

    longest: int
    usual: int
    mean: float
    labelled: float = 1.0
    num_blocks: int | None = None
    documents: Sequence[tuple[float, float]] = field(default=(), repr=False)
    sizes: Sequence[int] = field(default=(), repr=False)

    def usual_of(self, workload: Workload) -> Workload:
        """The workload on blocks as they usually are, which the work of all ranks together goes by."""
        labelled = self.labelled * self.mean / self.usual
        return replace(workload, tokens=self.usual, labelled=labelled, documents=self.documents)

    def slowest_of(self, workload: Workload) -> Workload:
        """The workload on what the rank is given that has the longest blocks, for which all others wait: a step's time
        goes by it. A step's blocks are dealt to the ranks with the longest first (`data.batches`), so it is the same
        rank in each of its micro-batches."""
        usual = self.usual_of(workload)
        held = self._held(workload)
        if not held:
            return usual
        mean = sum(held) / len(held)
        if math.isclose(sum(number for _, number in self.documents), 1.0):
            # A block is one document: there are no more of them, but longer ones.
            documents = tuple((tokens, 1 / len(held)) for tokens in held)
        else:
            documents = tuple((tokens, number * mean / self.usual) for tokens, number in self.documents)
        return replace(usual, tokens=max(1, round(mean)), documents=documents)

    def _held(self, workload: Workload) -> list[float]:
        """Tokens of that rank's blocks in one step: of so many drawn ones the longest, the next after one for each
        other rank, and so on. The longest is far from its median where a few are long; of the others the medians are
        taken (Blom's positions)."""
        ranks = workload.num_ranks
        if ranks == 1 or not self.sizes:
            return []
        each = workload.micro_batch_size * workload.num_micro_batches
        parts = [(number * ranks + 0.625) / (each * ranks + 0.25) for number in range(1, each)]
        others = [float(self.sizes[min(int(part * len(self.sizes)), len(self.sizes) - 1)]) for part in parts]
        return [_longest_of(tuple(self.sizes), each * ranks), *others]


def full(sequence_len: int) -> Lengths:
    """Every block is full, and one document: nothing is known of the data."""
    return Lengths(sequence_len, sequence_len, sequence_len)


def of_blocks(
    token_counts: Sequence[int],
    num_targets: int,
    documents: Mapping[int, int],
    micro_batch_size: int,
    *,
    padded_to: int | None,
) -> Lengths:
    """Of the prepared blocks; `documents`: tokens -> how many are that long. A micro-batch of several blocks is at most
    that many of the longest, which is what memory has to hold; time goes by the mean. What a micro-batch is padded with
    is one more document."""
    longest = sorted(token_counts, reverse=True)[:micro_batch_size]
    num_tokens, num_blocks = sum(token_counts), len(token_counts)
    mean = num_tokens / num_blocks
    most = -(-sum(longest) // len(longest))
    held = list(_alike(documents.items(), num_blocks))
    if padded_to and padded_to > mean:
        held.append(((padded_to - mean) * micro_batch_size, 1 / micro_batch_size))
    usual = padded_to or max(1, round(mean))
    every = -(-num_blocks // _MOST_SIZES)
    sizes = () if padded_to else tuple(sorted(token_counts, reverse=True)[every // 2 :: every])
    return Lengths(padded_to or most, usual, mean, num_targets / num_tokens, num_blocks, tuple(held), sizes)


@lru_cache(maxsize=64)
def _longest_of(sizes: tuple[int, ...], drawn: int) -> float:
    """The longest of so many blocks, in the mean: each of `sizes`, the longest first, by how likely it is that."""
    number = len(sizes)
    below = [((number - at) / number) ** drawn for at in range(number + 1)]
    return sum(size * (below[at] - below[at + 1]) for at, size in enumerate(sizes))


def _alike(documents: Iterable[tuple[int, int]], num_blocks: int) -> Iterable[tuple[float, float]]:
    """Documents that are about as long together, as long as it takes for the same sum of squares, by which attention
    goes; and how many a block holds."""
    numbers: dict[int, int] = {}
    squares: dict[int, int] = {}
    for tokens, number in documents:
        if tokens and number:
            at = round(math.log(tokens) / math.log(_STEP))
            numbers[at] = numbers.get(at, 0) + number
            squares[at] = squares.get(at, 0) + tokens**2 * number
    for at in sorted(numbers):
        yield math.sqrt(squares[at] / numbers[at]), numbers[at] / num_blocks
