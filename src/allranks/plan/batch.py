"""The effective batch, and the accumulation that keeps a wanted one on so many ranks."""

from __future__ import annotations

from dataclasses import dataclass

from allranks.config.batch import num_micro_batches


@dataclass(frozen=True)
class Batch:
    """Blocks of one step on `num_nodes` x `ranks_per_node` ranks. `wanted`: how many there are to be."""

    wanted: int
    micro_batch_size: int
    accumulation: int
    num_nodes: int
    ranks_per_node: int

    @property
    def effective(self) -> int:
        """micro_batch x accumulation x nodes x gpus_per_node."""
        return self.micro_batch_size * self.accumulation * self.num_nodes * self.ranks_per_node

    @property
    def is_exact(self) -> bool:
        """Whether a whole number of micro-batches makes the wanted batch."""
        return self.effective == self.wanted

    @property
    def keys(self) -> dict[str, int]:
        """The config's keys that ask for it. `batch_size` keeps any batch: the last micro-batch then has places that
        nobody fills."""
        rest = {"gradient_accumulation_steps": self.accumulation} if self.is_exact else {"batch_size": self.wanted}
        return {"micro_batch_size": self.micro_batch_size, **rest}

    def told(self) -> str:
        """The formula with its numbers, and where the wanted batch cannot be kept what can."""
        sum_of = (
            f"{self.micro_batch_size} (micro_batch_size) x {self.accumulation} (accumulation) x {self.num_nodes} "
            f"({'node' if self.num_nodes == 1 else 'nodes'}) x {self.ranks_per_node} (ranks a node)"
        )
        if self.is_exact:
            return f"{self.effective} = {sum_of}"
        of_round = self.effective // self.accumulation
        below = (self.accumulation - 1) * of_round
        near = f"{below} or {self.effective}" if below else f"{self.effective}, the least there can be"
        of_rank, rest = divmod(self.wanted, self.num_nodes * self.ranks_per_node)
        if not rest:
            size = max(size for size in range(1, self.micro_batch_size) if of_rank % size == 0)
            return (
                f"{self.wanted} is not a whole number of micro-batches: {sum_of} = {self.effective}. micro_batch_size: "
                f"{size} with an accumulation of {of_rank // size} makes it exactly"
            )
        return (
            f"{self.wanted} cannot be kept exactly by accumulation: {sum_of} = {self.effective}; whole micro-batches "
            f"make {near}. `batch_size: {self.wanted}` keeps it, and leaves {self.effective - self.wanted:,} of "
            f"{self.effective:,} places of a step empty"
        )


def batch(wanted: int, micro_batch_size: int, num_nodes: int, ranks_per_node: int) -> Batch:
    """With as many micro-batches of each rank as the wanted batch takes."""
    accumulation = num_micro_batches(wanted, micro_batch_size, num_nodes * ranks_per_node)
    return Batch(wanted, micro_batch_size, accumulation, num_nodes, ranks_per_node)
