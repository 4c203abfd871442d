"""The effective batch, and the accumulation that keeps a wanted one on so many ranks."""

from __future__ import annotations

from dataclasses import dataclass

from allranks.config.batch import num_micro_batches


@dataclass(frozen=True)
class Batch:
    """Blocks of one step on `num_nodes` x `ranks_per_node` ranks. `effective`: how many a step trains on, whatever the
    ranks and the size of a micro-batch are."""

    effective: int
    micro_batch_size: int
    accumulation: int
    num_nodes: int
    ranks_per_node: int

    @property
    def places(self) -> int:
        """micro_batch x accumulation x nodes x gpus_per_node: what all micro-batches of a step have room for."""
        return self.micro_batch_size * self.accumulation * self.num_nodes * self.ranks_per_node

    @property
    def empty_places(self) -> int:
        """Of the last micro-batch: padding, which takes time and has no part in the loss."""
        return self.places - self.effective

    @property
    def keys(self) -> dict[str, int]:
        """The config's keys that ask for it. `batch_size` keeps any batch, with empty places where it has to."""
        accumulated = {"gradient_accumulation_steps": self.accumulation}
        rest = {"batch_size": self.effective} if self.empty_places else accumulated
        return {"micro_batch_size": self.micro_batch_size, **rest}

    def told(self) -> str:
        """The formula with its numbers, and where it leaves places empty what does not."""
        sum_of = (
            f"{self.micro_batch_size} (micro_batch_size) x {self.accumulation} (accumulation) x {self.num_nodes} "
            f"({'node' if self.num_nodes == 1 else 'nodes'}) x {self.ranks_per_node} (ranks a node)"
        )
        if not self.empty_places:
            return f"{self.effective} = {sum_of}"
        return (
            f"{self.effective} (`batch_size: {self.effective}`) in {self.places} places = {sum_of}, of which a step "
            f"leaves {self.empty_places:,} empty; {self._without_empty_places()}"
        )

    def _without_empty_places(self) -> str:
        of_rank, rest = divmod(self.effective, self.num_nodes * self.ranks_per_node)
        if not rest:
            size = max(size for size in range(1, self.micro_batch_size) if of_rank % size == 0)
            return f"micro_batch_size: {size} with an accumulation of {of_rank // size} leaves none"
        below = self.places - self.places // self.accumulation
        return f"whole micro-batches make {f'{below} or {self.places}' if below else f'{self.places} at least'}"


def batch(wanted: int, micro_batch_size: int, num_nodes: int, ranks_per_node: int) -> Batch:
    """With as many micro-batches of each rank as the wanted batch takes."""
    accumulation = num_micro_batches(wanted, micro_batch_size, num_nodes * ranks_per_node)
    return Batch(wanted, micro_batch_size, accumulation, num_nodes, ranks_per_node)
