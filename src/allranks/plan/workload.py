"""What one rank will do: everything that its memory and the time of its steps depend on, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from allranks.plan.step_traffic import Layout

Method = Literal["full", "lora", "qlora"]
Attention = Literal["flash", "sdpa", "eager"]
Packing = Literal["bitsandbytes", "gptq"]
BUCKET_ELEMENTS, PREFETCH_ELEMENTS, PERSISTENT_BELOW = 500_000_000, 50_000_000, 100_000
"""DeepSpeed's defaults (runtime/zero/config.py)."""
DDP_BUCKET_MEBIBYTES = 25
FIRST_BUCKET_BYTES = 2**20
"""PyTorch's defaults: of a bucket, and of the first, which is sent soon; a size that is given is that of all
(torch/nn/parallel/distributed.py)."""


@dataclass(frozen=True, eq=False)
class ModelShape:
    """A decoder as its config.json tells it; the same only as itself, so that what is counted of it can be kept.

    `tensors`: name -> shape of each, tied ones once. `intermediate` is the width of a dense layer's or of one expert's
    hidden part, `mlp_matrices` how many matrices that has (3 where it is gated); `dense_intermediate` is that of layers
    without experts. `head_dim` is of queries and keys, `value_head_dim` of values. `window`: positions that attention
    looks back, in `num_windowed_layers`. `family`: config.json's `model_type`.
    """

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    tensors: Mapping[str, tuple[int, ...]] = field(repr=False)
    is_tied: bool = False
    mlp_matrices: int = 3
    num_experts: int = 0
    experts_per_token: int = 0
    shared_intermediate: int = 0
    num_dense_layers: int = 0
    window: int | None = None
    num_windowed_layers: int = 0
    dense_intermediate: int = 0
    value_head_dim: int = 0
    family: str = ""


@dataclass(frozen=True)
class ElementBytes:
    """Bytes of one element, by what it is.

    `frozen`: of a weight that is not trained, and not packed; `packed`: of one in 4 or 8 bits, its scales included.
    `gradient` is one as it travels; it is held as `trained` is. `state`: of the optimizer, without a master copy of the
    weight, which is `master`.
    """

    compute: float
    frozen: float
    trained: float
    gradient: float
    master: float
    state: float
    packed: float = 0.0


@dataclass(frozen=True)
class Workload:
    """A config on so many ranks. `num_trained` elements are trained; with an adapter they come beside the model's.

    `stops_early`: a layer is recomputed until all is there that its gradients need, which its last product is not
    (torch.utils.checkpoint without `use_reentrant`, from PyTorch 2.1 on).

    `evaluation_batch_size`: rows of a micro-batch of an evaluation, where they are more than those of the config's
    training; else 0.

    `changes`: what to write into the config to get this one, key -> value, or None for a key to take out.
    `deepspeed_batch`: keys of its DeepSpeed settings that have numbers for the batch; `has_batch_size`: whether the
    config says the global batch.

    `tokens` are those of one row of a micro-batch, padding included (`sequence_len` where rows are packed);
    `labelled` is the part of them that has a label. `documents`: (tokens of a document, how many such a row holds in
    the mean), none where a row is one document; each attends to itself alone, but with `masks_row` all is computed and
    a mask takes out what one document would see of another. `adapted`: module -> (rows, columns) of each matrix that
    LoRA adds `lora_rank` to; `adapted_parameters`: parameter -> shape of those that it is added to as they are, each
    pass anew. `num_packed` of the model's elements are held in 4 or 8 bits by `packing` (allranks
    trains only on the first; published figures are of others, too). `bucket_bytes`: of DDP's buckets,
    `first_bucket_bytes` of the first; `upcasts_logits`, `shifts_logits`: where the loss is made of all logits, whether
    in float32, and of a copy of them (other trainers'). `num_threads`: of a rank on a CPU, 0 where it takes its part of
    the cores. `foreach_copies`: of the size of a state, that an AdamW that is not fused makes in its step (PyTorch 2.0:
    two). `each_copy_bytes`: what a step that takes one tensor after the other makes for each element of that one.
    `bucket_elements`, `prefetch_elements`, `persistent_below`: DeepSpeed's settings for these.
    """

    name: str
    shape: ModelShape
    method: Method
    layout: Layout
    num_ranks: int
    ranks_per_node: int
    num_trained: int
    micro_batch_size: int
    num_micro_batches: int
    tokens: int
    element: ElementBytes
    evaluation_batch_size: int = 0
    labelled: float = 1.0
    documents: Sequence[tuple[float, float]] = field(default=(), repr=False)
    lora_rank: int = 0
    lora_dropout: bool = False
    adapted: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    adapted_parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    num_packed: int = 0
    packing: Packing = "bitsandbytes"
    trains_embeddings: bool = True
    recomputes: bool = False
    stops_early: bool = True
    offloads_activations: bool = False
    offloads_optimizer: bool = False
    offloads_parameters: bool = False
    attention: Attention = "sdpa"
    masks_row: bool = False
    chunks_logits: bool = True
    upcasts_logits: bool = True
    shifts_logits: bool = False
    is_compiled: bool = False
    on_cpu: bool = False
    num_threads: int = 0
    optimizer: str = "adamw_torch_fused"
    foreach: bool = True
    foreach_copies: int = 1
    each_copy_bytes: float = 0.0
    bucket_bytes: float = DDP_BUCKET_MEBIBYTES * 2**20
    first_bucket_bytes: float = FIRST_BUCKET_BYTES
    bucket_elements: int = BUCKET_ELEMENTS
    prefetch_elements: int = PREFETCH_ELEMENTS
    persistent_below: int = PERSISTENT_BELOW
    is_own: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    deepspeed_batch: Sequence[str] = ()
    has_batch_size: bool = False


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank holds when it holds most, by what they are; `reserve` is what the allocator and the driver
    need beside, on a CPU the process, where earlier runs say how much. `host`: of the node's memory, all of its ranks
    together. `adapter`: what of `parameters` is trained beside the model's own."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    communication: float
    reserve: float
    host: float = 0.0
    adapter: float = 0.0

    @property
    def total(self) -> float:
        parts = (self.parameters, self.gradients, self.optimizer, self.activations, self.logits, self.communication)
        return sum(parts) + self.reserve


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step of all ranks, by what they go into. `exposed`: what of `communication` is not
    hidden behind computing."""

    matmul: float
    attention: float
    memory_bound: float
    optimizer: float
    communication: float
    exposed: float
    overhead: float = 0.0

    @property
    def compute(self) -> float:
        return self.matmul + self.attention + self.memory_bound + self.optimizer + self.overhead

    @property
    def total(self) -> float:
        return self.compute + self.exposed
