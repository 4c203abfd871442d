"""The order of blocks: a seeded permutation for every epoch, by index arithmetic. There is no state to save."""

import numpy as np


class BlockOrder:
    """The endless stream of epochs over `num_blocks` blocks.

    Epoch e is a permutation of its own, from (seed, e) alone, so position p of the stream is known without the
    positions before it. `seed=None` keeps the blocks in their order in every epoch (evaluation).
    """

    def __init__(self, num_blocks: int, seed: int | None):
        if num_blocks < 1:
            raise ValueError("an order needs at least one block")
        self.num_blocks = num_blocks
        self.seed = seed
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
        # Raw bits of a bit generator are the same in every numpy version (NEP 19); Generator.permutation is not.
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch])).random_raw(self.num_blocks)
        return np.argsort(bits, kind="stable").astype(np.int64)
