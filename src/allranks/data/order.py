"""The order of blocks: a seeded permutation for every epoch, by index arithmetic. There is no state to save."""

import numpy as np

# Blocks are sorted by length within so many steps at a time: enough to find company of one length, few enough that an
# epoch is still mixed. transformers' LengthGroupedSampler takes 50 too.
_STEPS_SORTED = 50


class BlockOrder:
    """The endless stream of epochs over `num_blocks` blocks.

    Epoch e is a permutation of its own, from (seed, e) alone, so position p of the stream is known without the
    positions before it. `seed=None` keeps the blocks in their order in every epoch (evaluation, a curriculum).

    lengths: int[num_blocks], tokens of each block; given with `step`, the blocks of a step, it makes permutations in
    which the blocks of a step are about equally long.
    """

    def __init__(self, num_blocks: int, seed: int | None, *, lengths: np.ndarray | None = None, step: int = 1):
        if num_blocks < 1:
            raise ValueError("an order needs at least one block")
        self.num_blocks = num_blocks
        self.seed = seed
        self.lengths = lengths
        self.step = step
        self._epochs: dict[int, np.ndarray] = {}

    def block_ids(self, start: int, stop: int) -> np.ndarray:
        """Block ids int64[stop-start] at positions start..stop-1 of the stream."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            epoch, at = divmod(start, self.num_blocks)
            taken = min(stop - start, self.num_blocks - at)
            parts.append(self._epoch(epoch)[at : at + taken])
            start += taken
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            for old in [e for e in self._epochs if e < epoch - 1]:
                del self._epochs[old]
            self._epochs[epoch] = self._permutation(epoch)
        return self._epochs[epoch]

    def _permutation(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return np.arange(self.num_blocks, dtype=np.int64)
        order = _random_order(self.num_blocks, self.seed, epoch)
        return order if self.lengths is None else self._by_length(order, self.lengths, epoch, self.seed)

    def _by_length(self, order: np.ndarray, lengths: np.ndarray, epoch: int, seed: int) -> np.ndarray:
        # The first blocks of an epoch fill the step that the epoch before has begun; whole steps follow from there.
        begun = -epoch * self.num_blocks % self.step
        head, rest = order[:begun], order[begun:]
        window = _STEPS_SORTED * self.step
        parts = [rest[at : at + window] for at in range(0, len(rest), window)]
        by_length = [part[np.argsort(-lengths[part], kind="stable")] for part in parts]
        grouped = np.concatenate([np.empty(0, np.int64), *by_length])
        # Mixed step by step, or each window would go from long to short.
        whole = len(grouped) // self.step
        steps = grouped[: whole * self.step].reshape(whole, self.step)
        mixed = steps[_random_order(whole, seed, epoch, 1)]
        return np.concatenate([head, mixed.ravel(), grouped[whole * self.step :]])


def _random_order(count: int, *seeds: int) -> np.ndarray:
    # Raw bits of a bit generator are the same in every numpy version (NEP 19); Generator.permutation is not.
    bits = np.random.PCG64(np.random.SeedSequence(list(seeds))).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64)
