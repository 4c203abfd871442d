"""How long the rows are that a run is given, and the documents in them: as prepared, or as long as they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from allranks.plan.workload import Workload

_STEP = 1.25
"""Documents whose lengths differ by no more than this many times are counted as equally long."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of blocks. `longest`, `usual`: of one block in the longest and in the usual micro-batch, padding included;
    `mean` without it. `labelled`: part of the tokens that has a label. `num_blocks`: of an epoch; None where there is
    no data yet. `documents`: (tokens of a document, how many a block holds in the mean); none where nothing is known.
    """

    longest: int
    usual: int
    mean: float
    labelled: float = 1.0
    num_blocks: int | None = None
    documents: Sequence[tuple[float, float]] = field(default=(), repr=False)

    def usual_of(self, workload: Workload) -> Workload:
        """The workload on blocks as they usually are, which its time goes by."""
        labelled = self.labelled * self.mean / self.usual
        return replace(workload, tokens=self.usual, labelled=labelled, documents=self.documents)


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
    return Lengths(padded_to or most, usual, mean, num_targets / num_tokens, num_blocks, tuple(held))


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
