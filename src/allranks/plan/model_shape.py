"""The tensors of a decoder, from its config.json alone. Needs neither torch nor weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from allranks.plan.counted import IN_LAYERS
from allranks.plan.described import Described, UnknownShapeError
from allranks.plan.families import FAMILIES, Family, Flag
from allranks.plan.windows import windows_of
from allranks.plan.workload import ModelShape

Tensors = Iterator[tuple[str, tuple[int, ...]]]


def shape_of(config: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]] | None = None) -> ModelShape:
    """The shape of the model that `config`, the contents of its config.json, describes.

    `stored`: the shapes of the tensors in its files (`stored_size.stored_shapes`), which are then what counts: so a
    model of a family that is not known here can be planned once its weights are there.

    Raises:
        UnknownShapeError: the family is not known and `stored` is not given, or a number is missing.
    """
    kind = str(config.get("model_type", ""))
    if "vision_config" in config or "audio_config" in config:
        raise UnknownShapeError(
            "model_type",
            f"model_type {kind!r} also sees or hears, and only text models can be planned; give the config.json of its "
            "text model",
        )
    family = FAMILIES.get(kind)
    if family is None and stored is None:
        raise UnknownShapeError(
            "model_type",
            f"model_type {kind!r} is not one whose tensors are known from its config.json "
            f"({', '.join(sorted(FAMILIES))}); with the model's safetensors files beside it they are read from those",
        )
    reader = _Reader(config, family or Family())
    tensors = dict(_of_files(config, stored, reader.is_tied) if stored is not None else reader.tensors())
    return ModelShape(
        num_layers=reader.num_layers,
        hidden=reader.hidden,
        intermediate=reader.expert_width or reader.width,
        num_heads=reader.heads,
        num_kv_heads=reader.kv_heads,
        head_dim=reader.head_dim,
        vocabulary=reader.vocabulary,
        tensors=tensors,
        is_tied=reader.is_tied,
        mlp_matrices=3 if reader.family.is_gated else 2,
        num_experts=reader.experts,
        experts_per_token=reader.experts_per_token,
        shared_intermediate=reader.shared_width,
        num_dense_layers=sum(not reader.is_mixture(layer) for layer in range(reader.num_layers)),
        dense_intermediate=reader.width,
        value_head_dim=reader.value_head_dim,
        family=kind,
        **windows_of(config, reader),
    )


def _of_files(config: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]], is_tied: bool) -> Tensors:
    """Without layers beyond the model's last (they predict further tokens), and without a tied output layer's copy."""
    num_layers = config.get("num_hidden_layers")
    for name, shape in stored.items():
        layer = IN_LAYERS.search(name)
        is_extra = layer is not None and isinstance(num_layers, int) and int(layer[1]) >= num_layers
        if not is_extra and not (is_tied and name == "lm_head.weight"):
            yield name, shape


class _Reader(Described):
    """The tensors that these numbers make."""

    def tensors(self) -> Tensors:
        """Name -> shape, as they are stored in files: experts one by one."""
        if self.config.get("model_type") == "qwen":
            yield from self._of_first_qwen()
            return
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            yield from self._latent_attention(prefix) if self.family.is_latent else self._attention(prefix)
            yield from self._experts(prefix) if self.is_mixture(layer) else self._mlp(f"{prefix}mlp.", self.width)
            for norm in self.family.norms:
                yield from self._norm(f"{prefix}{norm}")
        yield from self._norm("model.norm")
        if not self.is_tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)

    def _norm(self, name: str) -> Tensors:
        yield f"{name}.weight", (self.hidden,)
        if self.family.norm_bias:
            yield f"{name}.bias", (self.hidden,)

    def _linear(self, name: str, rows: int, columns: int, bias: Flag = False) -> Tensors:
        yield f"{name}.weight", (rows, columns)
        if self.says(bias):
            yield f"{name}.bias", (rows,)

    def _attention(self, prefix: str) -> Tensors:
        family, at = self.family, f"{prefix}self_attn."
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if family.packs_projections:
            yield from self._linear(f"{at}qkv_proj", queries + 2 * keys, self.hidden)
        else:
            for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
                yield from self._linear(f"{at}{name}", rows, self.hidden, family.qkv_bias)
        yield from self._linear(f"{at}o_proj", self.hidden, queries, family.o_bias)
        if family.qk_norm:
            of_width = (self.hidden, self.hidden // self.heads * self.kv_heads)
            sizes = {"head": (self.head_dim, self.head_dim), "all": (queries, keys), "width": of_width}
            for name, size in zip(("q_norm", "k_norm"), sizes[family.qk_norm], strict=True):
                yield f"{at}{name}.weight", (size,)

    def _latent_attention(self, prefix: str) -> Tensors:
        """DeepSeek's, with keys and values from a latent vector (arXiv 2405.04434, section 2.1)."""
        at, bias = f"{prefix}self_attn.", "attention_bias"
        queries = self.heads * self.head_dim
        rope, latent = self.number("qk_rope_head_dim"), self.number("kv_lora_rank")
        rank = self.optional("q_lora_rank")
        if rank is None and "q_lora_rank" not in self.config:
            raise UnknownShapeError("q_lora_rank", "q_lora_rank is missing; null is a model whose queries have none")
        if rank is None:
            yield from self._linear(f"{at}q_proj", queries, self.hidden)
        else:
            yield from self._linear(f"{at}q_a_proj", rank, self.hidden, bias)
            yield f"{at}q_a_layernorm.weight", (rank,)
            yield from self._linear(f"{at}q_b_proj", queries, rank)
        yield from self._linear(f"{at}kv_a_proj_with_mqa", latent + rope, self.hidden, bias)
        yield f"{at}kv_a_layernorm.weight", (latent,)
        per_head = self.head_dim - rope + self.value_head_dim
        yield from self._linear(f"{at}kv_b_proj", self.heads * per_head, latent)
        yield from self._linear(f"{at}o_proj", self.hidden, self.heads * self.value_head_dim, bias)

    def _mlp(self, prefix: str, width: int) -> Tensors:
        bias = self.family.mlp_bias
        if self.family.packs_projections:
            yield from self._linear(f"{prefix}gate_up_proj", 2 * width, self.hidden)
        else:
            for name in ("gate_proj", "up_proj"):
                yield from self._linear(f"{prefix}{name}", width, self.hidden, bias)
        yield from self._linear(f"{prefix}down_proj", self.hidden, width, bias)

    def _experts(self, prefix: str) -> Tensors:
        mixtral = self.family.experts == "mixtral"
        at, names = (f"{prefix}block_sparse_moe.", ("w1", "w3", "w2")) if mixtral else (f"{prefix}mlp.", _OF_EXPERT)
        yield f"{at}gate.weight", (self.experts, self.hidden)
        rising, falling = (self.expert_width, self.hidden), (self.hidden, self.expert_width)
        for expert in range(self.experts):
            for name, shape in zip(names, (rising, rising, falling), strict=True):
                yield f"{at}experts.{expert}.{name}.weight", shape
        if not self.family.shared_key:
            return
        if self.family.experts == "deepseek":
            yield from self._mlp(f"{at}shared_experts.", self.shared_width)
        else:
            yield from self._mlp(f"{at}shared_expert.", self.shared_width)  # of a width of 0, too
            yield f"{at}shared_expert_gate.weight", (1, self.hidden)

    def _of_first_qwen(self) -> Tensors:
        yield "transformer.wte.weight", (self.vocabulary, self.hidden)
        for layer in range(self.num_layers):
            at = f"transformer.h.{layer}."
            yield from self._linear(f"{at}attn.c_attn", 3 * self.hidden, self.hidden, True)
            yield from self._linear(f"{at}attn.c_proj", self.hidden, self.hidden)
            for name in ("w1", "w2"):
                yield from self._linear(f"{at}mlp.{name}", self.width, self.hidden)
            yield from self._linear(f"{at}mlp.c_proj", self.hidden, self.width)
            yield from self._norm(f"{at}ln_1")
            yield from self._norm(f"{at}ln_2")
        yield from self._norm("transformer.ln_f")
        yield "lm_head.weight", (self.vocabulary, self.hidden)


_OF_EXPERT = ("gate_proj", "up_proj", "down_proj")
