"""How long the rows are that a run is given: of the prepared data, or as long as they may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """Tokens of blocks. `longest`, `usual`: of one block in the longest and in the usual micro-batch, padding included;
    `mean` without it. `labelled`: part of the tokens that has a label. `num_blocks`: of an epoch; None where there is
    no data yet."""

    longest: int
    usual: int
    mean: float
    labelled: float = 1.0
    num_blocks: int | None = None


def full(sequence_len: int) -> Lengths:
    """Every block is full: nothing is known of the data."""
    return Lengths(sequence_len, sequence_len, sequence_len)


def of_blocks(token_counts: list[int], num_targets: int, micro_batch_size: int, *, padded_to: int | None) -> Lengths:
    """Of the prepared blocks. A micro-batch of several is at most that many of the longest, which is what memory has to
    hold; time goes by the mean."""
    longest = sorted(token_counts, reverse=True)[:micro_batch_size]
    num_tokens = sum(token_counts)
    mean = num_tokens / len(token_counts)
    most = -(-sum(longest) // len(longest))
    return Lengths(
        padded_to or most, padded_to or max(1, round(mean)), mean, num_targets / num_tokens, len(token_counts)
    )
