"""What a model's graph holds between its forward and its backward pass, layer by layer, from shapes alone.

An inventory: each tensor that an operation of transformers' decoders saves for its gradient, in bytes a token. Where
nothing is compiled, that is what PyTorch keeps, to the last tensor; `layers compiled` keep less (below).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from allranks.plan.counted import alike, num_parameters
from allranks.plan.same import Same
from allranks.plan.workload import ModelShape, Workload

_FLOAT = 4
_MLP = ("gate_proj", "up_proj")
_NAMES = {"c_attn": "q_proj", "w1": "gate_proj", "w2": "up_proj"}
"""Modules of Qwen's first models, by those that do the same in others."""
_COMPILED = 0.7
"""Part of the kept bytes that is left where layers are compiled: Inductor computes norms, activations and casts again
in the backward pass instead of keeping them (its min-cut partitioner). Not measured here: no GPU."""


@dataclass(frozen=True)
class Activations:
    """Bytes of a whole micro-batch.

    `layer`: what a layer keeps in the mean, its input included; `widest_layer`: the one that keeps most, where some
    have experts; `first_layer` less, where nothing before it is trained. `input`: a layer's input, which is all that is
    kept where layers are recomputed. `working`: what a layer's backward pass takes beside. `ends`: before the first and
    after the last layer, the loss apart. `casts`: weights in the computed type, which autocast keeps until the forward
    pass ends, and the graph until the backward pass. `sums`: gradients of sums of weights and an adapter, beside
    `working`. `passing`: what a layer holds at its fullest where there is no graph.
    """

    layer: float
    widest_layer: float
    first_layer: float
    input: float
    working: float
    ends: float
    casts: float
    sums: float
    passing: float


def activations(workload: Workload) -> Activations:
    """Of one micro-batch of `workload`."""
    return _Inventory(workload).counted()


class _Inventory:
    def __init__(self, workload: Workload) -> None:
        self.workload, self.shape = workload, workload.shape
        self.num_tokens = workload.tokens * workload.micro_batch_size
        element = workload.element
        self.compute = element.compute
        # DDP and one process compute under autocast; FSDP and ZeRO give the layers weights of the computed type.
        self.autocasts = workload.layout.kind == "ddp" and element.compute != element.trained
        self.is_full = workload.method == "full"
        self.adapted = _short_names(Same(workload.adapted))
        # Parameters that an adapter is added to as they are: the sum is kept, for it has a gradient.
        self.summed = {name: math.prod(shape) for name, shape in workload.adapted_parameters.items()}
        # Under autocast, float32 embeddings and norms make a float32 stream between the layers.
        self.stream = _FLOAT if self.autocasts and self.is_full else self.compute

    def counted(self) -> Activations:
        shape, tokens = self.shape, self.num_tokens
        dense, mixed = self._attention() + self._mlp(), self._attention() + self._mixture()
        num_dense = shape.num_dense_layers if shape.num_experts else shape.num_layers
        num_mixed = shape.num_layers - num_dense
        num_norms = _num_norms(self.shape)
        norms = sum(self._norm(shape.hidden) for _ in range(num_norms))
        # Both of a layer's norms see the stream itself; in 16 bits they keep float32 copies of it.
        layer = norms + (num_dense * dense + num_mixed * mixed) / shape.num_layers
        before = 0.0 if self.is_full or self.workload.trains_embeddings else self._norm(shape.hidden)
        kept = _COMPILED if self.workload.is_compiled else 1.0
        fixed = self._scores()
        summed = sum(self.summed.values()) * self.compute
        largest = norms + max(dense if num_dense else 0.0, mixed if num_mixed else 0.0)
        widest = kept * tokens * largest + fixed + summed / max(1, num_mixed)
        fixed += summed / shape.num_layers
        return Activations(
            layer=kept * tokens * layer + fixed,
            widest_layer=widest,
            first_layer=kept * tokens * (layer - before) + fixed,
            input=tokens * shape.hidden * self.stream,
            working=tokens * self._working(),
            sums=self._gradients_of_sums(),
            passing=self._passing(),
            ends=tokens * (self._norm(shape.hidden) + shape.hidden * self.stream + self._rotation()),
            casts=self._casts(),
        )

    def _casts(self) -> float:
        if not self.autocasts:
            return 0.0
        if not self.is_full:
            return self.workload.num_trained * self.compute
        ends = self.shape.vocabulary * self.shape.hidden
        return self.compute * (num_parameters(self.shape) - ends * (1 if self.shape.is_tied else 2))

    def _norm(self, width: int) -> float:
        """An RMSNorm: its input in float32 (the stream itself where that is so), and what its weight multiplies."""
        input_, scaled = width * _FLOAT, width * self.stream if self.is_full else 0.0
        if self.shape.family.startswith("gemma"):
            return input_ + width * _FLOAT  # which multiplies by 1 + weight, in float32
        return input_ + scaled

    def _input_of(self, names: Sequence[str], width: int, *, is_alone: bool = False) -> float:
        """What linear layers with one input of `width` keep of it: once, and under autocast each its own copy.

        `is_alone`: the operation before keeps that very tensor, in the type that is computed with.
        """
        if self.is_full:
            copies = len(names) if self.autocasts and self.stream == _FLOAT and not is_alone else 1
            return copies * width * self.compute
        adapted = sum(name in self.adapted for name in names)
        if not adapted:
            return 0.0
        ranks = adapted * self.workload.lora_rank * self.compute
        dropped = adapted * width * (self.compute + 1) if self.workload.lora_dropout else 0.0
        copies = adapted if self.autocasts else 1
        return (dropped or copies * width * self.compute) + ranks

    def _attention(self) -> float:
        """Projections, rotation and the attention itself, which keeps queries, keys, values and what it returns."""
        shape, workload = self.shape, self.workload
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        values = shape.num_kv_heads * (shape.value_head_dim or shape.head_dim)
        returned = shape.num_heads * (shape.value_head_dim or shape.head_dim)
        projections = self._input_of(("q_proj", "k_proj", "v_proj"), shape.hidden)
        if has_query_norms(shape):
            projections += self._norm(queries) + self._norm(keys)
        of_queries, of_keys = _latent_widths(shape)
        for name, width in (("q_b_proj", of_queries), ("kv_b_proj", of_keys)):
            projections += self._norm(width) + self._input_of((name,), width, is_alone=True) if width else 0.0
        if workload.attention == "eager":
            keys, values = queries, returned  # repeated for each query head
        elif of_keys:
            # Keys are put together for each head from one projection's outputs, of which values are a view.
            keys, values = queries, shape.num_heads * (shape.head_dim - _rotated(shape)) + returned
        kept = (queries + keys + values + returned) * self.compute
        kept += shape.num_heads * _FLOAT  # the softmax's logarithms
        output = self._input_of(("o_proj",), returned, is_alone=True)
        if workload.attention == "flash" and (self.is_full or output):
            # What it returns is the very tensor that the output projection keeps.
            output -= returned * self.compute if not (self.autocasts and not self.is_full) else 0.0
        return projections + kept + output

    def _scores(self) -> float:
        """Where no fused kernel can run, every score is kept: the softmax in float32 and in the computed type, and what
        caps it."""
        shape, workload = self.shape, self.workload
        is_capped = shape.family == "gemma2"
        if workload.on_cpu and workload.attention == "sdpa" and shape.value_head_dim not in (0, shape.head_dim):
            # A CPU's fused kernel has no values of another width; what is run in its place keeps the softmax.
            return workload.micro_batch_size * workload.tokens**2 * shape.num_heads * self.compute
        if workload.attention != "eager" and not is_capped:
            return 0.0
        each = (_FLOAT + (self.compute if self.compute != _FLOAT else 0)) + (self.compute if is_capped else 0)
        row = workload.micro_batch_size * workload.tokens
        # Under a mask a micro-batch is one row of scores; without one each block has its own.
        pairs = row**2 if workload.attention == "eager" else row * workload.tokens
        return pairs * (shape.num_heads * each + 1)

    def _mlp(self, width: int = 0) -> float:
        shape = self.shape
        width = width or shape.dense_intermediate or shape.intermediate
        names = _MLP if shape.mlp_matrices == 3 else ("up_proj",)
        hidden = self._input_of(names, shape.hidden)
        # The gate before and after its function, the other half; the product is what the last projection keeps.
        kept = (3 if shape.mlp_matrices == 3 else 1) * width * self.compute
        return hidden + kept + self._input_of(("down_proj",), width, is_alone=True)

    def _mixture(self, *, at_once: bool = False) -> float:
        """Experts as grouped products: each token's copies, sorted by expert (transformers' `grouped_mm`).

        What is kept of them, or what is there `at_once`.
        """
        shape = self.shape
        # Grouped products are no operation of autocast's: float32 weights are computed with in float32.
        size = self.stream if self.is_full else self.compute
        rising, falling = (at_once or self.is_full or self._is_summed(name) for name in ("gate_up_proj", "down_proj"))
        copies = shape.experts_per_token * ((2 if rising else 1) * shape.hidden + 3 * shape.intermediate) * size
        product = shape.experts_per_token * shape.intermediate * size if falling else 0.0
        routes = shape.num_experts * 2 * _FLOAT + (shape.hidden * self.stream if self.is_full else 0.0)
        shared = self._mlp(shape.shared_intermediate) if shape.shared_intermediate else 0.0
        return copies + product + routes + shared

    def _is_summed(self, kind: str) -> bool:
        return any(name.endswith(f".experts.{kind}") for name in self.summed)

    def _gradients_of_sums(self) -> float:
        """Of the largest, in a layer's backward pass."""
        return max(self.summed.values(), default=0) * self.compute

    def _working(self) -> float:
        """The gradients in flight at the widest place of a layer's backward pass: its stream's, and two of the MLP."""
        shape = self.shape
        width = shape.experts_per_token * shape.intermediate if shape.num_experts else shape.intermediate
        return shape.hidden * self.stream + 2 * width * self.compute

    def _passing(self) -> float:
        shape, tokens = self.shape, self.num_tokens
        parts = [self._attention()]
        if not shape.num_experts or shape.num_dense_layers:
            parts.append(self._mlp())
        if shape.num_experts:
            parts.append(self._mixture(at_once=True))
        stream = shape.hidden * self.stream + self._norm(shape.hidden)
        return tokens * (stream + max(parts)) + self._scores() + sum(self.summed.values(), 0.0) * self.compute

    def _rotation(self) -> float:
        return 2 * self.shape.head_dim * self.stream


@lru_cache(maxsize=8)
def has_query_norms(shape: ModelShape) -> bool:
    """Whether queries and keys are normed, head by head (Qwen3)."""
    return any(name.endswith("self_attn.q_norm.weight") for name, _ in alike(shape))


@lru_cache(maxsize=8)
def _latent_widths(shape: ModelShape) -> tuple[int, int]:
    """Of the vectors that queries, and keys with values, are projected from, as DeepSeek has them; 0: none."""
    widths = {"q_a_layernorm.weight": 0, "kv_a_layernorm.weight": 0}
    for name, size in alike(shape):
        norm = ".".join(name.split(".")[-2:])
        if norm in widths:
            widths[norm] = size[0]
    of_queries, of_keys = widths.values()
    return of_queries, of_keys


@lru_cache(maxsize=8)
def _rotated(shape: ModelShape) -> int:
    """Of a head's width, what is rotated: one for all heads, beside the vector that `kv_a_proj_with_mqa` makes."""
    rows = next((size[0] for name, size in alike(shape) if name.endswith("kv_a_proj_with_mqa.weight")), 0)
    return rows - _latent_widths(shape)[1]


@lru_cache(maxsize=8)
def _num_norms(shape: ModelShape) -> int:
    """Of one layer, over the whole width."""
    hidden, layers = shape.hidden, shape.num_layers
    norms = sum(
        number
        for (name, size), number in alike(shape).items()
        if size == (hidden,) and name.endswith("weight") and not name.endswith(("q_norm.weight", "k_norm.weight"))
    )
    return max(1, math.floor(norms / layers))


@lru_cache(maxsize=32)
def _short_names(adapted: Same[Mapping[str, tuple[int, int]]]) -> frozenset[str]:
    return frozenset(map(_short, adapted.value))


def _short(module: str) -> str:
    last = module.rpartition(".")[2]
    if last == "c_proj":
        return "o_proj" if ".attn." in module else "down_proj"
    return _NAMES.get(last, last)
