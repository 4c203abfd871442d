"""What the collectives of one step will be under each strategy, before anything runs, and what of it leaves a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from allranks.plan.communication import Backend, Collective, sent_to_other_nodes


@dataclass(frozen=True)
class Layout:
    """How a strategy spreads the model over the ranks.

    `num_shards`: ranks that hold one copy together (FSDP2); `stage` is ZeRO's. `keeps_gathered`: what was gathered for
    the forward pass serves the backward pass, too. `reduces_each`: FSDP2 reduces its shards' gradients after each
    micro-batch and not once a step. `hpz`: ranks that keep a copy of the parameters among themselves (ZeRO++).
    """

    kind: Literal["ddp", "fsdp", "zero"]
    num_shards: int = 1
    stage: int = 0
    keeps_gathered: bool = False
    reduces_each: bool = False
    hpz: int = 1


@dataclass(frozen=True)
class StepSizes:
    """What a step has to move: numbers of elements, and the bytes of one as it travels.

    `num_persistent`: of parameters that ZeRO-3 keeps whole on every rank, and gathers once after its step; `num_again`:
    of those that it gathers a third time in each micro-batch (`plan.zero_gathers`).
    """

    num_parameters: int
    num_trained: int
    parameter_bytes: float
    gradient_bytes: float
    num_micro_batches: int
    num_persistent: int = 0
    num_again: int = 0


def node_sends_bytes(layout: Layout, sizes: StepSizes, nodes: Sequence[int], backend: Backend) -> float:
    """Bytes that node 0 sends to others in a step; `nodes` is the node of each rank, equally many ranks on each.

    An upper bound by a little: FSDP2 does not gather twice what stands at the model's ends, and DeepSpeed keeps some of
    what it gathered ahead. Losses and norms are some bytes, and left out.
    """
    own = [rank for rank, node in enumerate(nodes) if node == nodes[0]]
    return sum(
        calls * sent_to_other_nodes(one, rank, nodes)
        for rank in own
        for one, calls in collectives_of_step(layout, sizes, rank, len(nodes), backend)
    )


def collectives_of_step(
    layout: Layout, sizes: StepSizes, rank: int, num_ranks: int, backend: Backend
) -> Iterator[tuple[Collective, int]]:
    """Each collective that `rank` issues, as if in one piece, and how often in a step.

    DDP reduces gradients once a step; FSDP2 gathers parameters forward and backward for each micro-batch and reduces in
    the last. DeepSpeed's ZeRO-1 and 2 reduce by an all-reduce over all ranks (`use_multi_rank_bucket_allreduce`), 2
    after each micro-batch, and gather what was trained once; ZeRO-3 gathers as FSDP2 does and reduces after each.
    gloo has no reduce-scatter: PyTorch does an all-reduce there.
    """
    everyone = range(num_ranks)
    parameters = sizes.num_parameters * sizes.parameter_bytes
    trained = sizes.num_trained * sizes.parameter_bytes
    gradients = sizes.num_trained * sizes.gradient_bytes
    micro_batches = sizes.num_micro_batches
    gathers = micro_batches * (1 if layout.keeps_gathered else 2)
    scatter = "all_reduce" if backend == "gloo" else "reduce_scatter"

    def one(op: str, ranks: range, num_bytes: float) -> Collective:
        return Collective(op, backend, "", ranks, "", round(num_bytes))

    if layout.kind == "ddp":
        yield one("all_reduce", everyone, gradients), 1
    elif layout.kind == "fsdp":
        shards = _group(rank, layout.num_shards)
        yield one("all_gather", shards, parameters), gathers
        yield one(scatter, shards, gradients), micro_batches if layout.reduces_each else 1
        replicas = range(rank % layout.num_shards, num_ranks, layout.num_shards)
        if len(replicas) > 1:
            yield one("all_reduce", replicas, gradients / layout.num_shards), 1
    elif layout.stage < 3:
        yield one("all_reduce", everyone, gradients), micro_batches if layout.stage == 2 else 1
        yield one("all_gather", everyone, trained), 1
    else:
        persistent = sizes.num_persistent * sizes.parameter_bytes
        # Copies are made from what the step's first pass has gathered; the optimizer's step makes them old.
        over_all = 1 if layout.hpz > 1 else gathers
        yield one("all_gather", everyone, parameters - persistent), over_all
        yield one("all_gather", _group(rank, layout.hpz), parameters - persistent), gathers - over_all
        again = sizes.num_again * sizes.parameter_bytes
        yield one("all_gather", everyone if layout.hpz == 1 else _group(rank, layout.hpz), again), micro_batches
        yield one("all_gather", everyone, persistent), 1
        yield one(scatter, everyone, gradients), micro_batches


def _group(rank: int, size: int) -> range:
    """The ranks, `size` of them in a row, that this one is among."""
    first = rank - rank % size
    return range(first, first + size)
