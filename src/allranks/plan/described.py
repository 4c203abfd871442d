"""What a config.json says of a decoder, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allranks.errors import UsageError
from allranks.plan.families import FAMILIES, Family, Flag

_MOST_LAYERS, _MOST_EXPERTS = 10_000, 100_000
_LARGEST = 2**24  # of a width or a vocabulary
"""Of a model, all layers together: far beyond any, and a number that would take minutes to count is a slip."""


class UnknownShapeError(UsageError):
    """A config.json that does not tell which tensors its model has. `key`: of it, that is the reason; `said`: why."""

    def __init__(self, key: str, said: str, file: Path | str = "config.json") -> None:
        super().__init__(f"{file}: {said}")
        self.key, self.said = key, said

    def found_in(self, file: Path | str) -> UnknownShapeError:
        """The same by the name of the file, for whoever knows it."""
        return UnknownShapeError(self.key, self.said, file)


class Described:
    """The numbers of a decoder by their many names. Raises UnknownShapeError for what cannot be."""

    def __init__(self, config: Mapping[str, Any], family: Family) -> None:
        self.config, self.family = config, family
        self.num_layers = self.number("num_hidden_layers", "n_layer")
        self.hidden = self.number("hidden_size", "n_embd")
        self.heads = self.number("num_attention_heads", "n_head")
        unsaid = None if "num_key_value_heads" in config else family.kv_heads
        self.kv_heads = self.optional("num_key_value_heads") or unsaid or self.heads
        self.vocabulary = self.number("vocab_size")
        self.is_known = str(config.get("model_type", "")) in FAMILIES
        self.width = self._width("intermediate_size", "n_inner") or 4 * self.hidden
        self.is_tied = self._is("tie_word_embeddings", family.is_tied)
        self.head_dim = self.optional("head_dim") or family.head_dim or self.hidden // self.heads
        self.value_head_dim = self.head_dim
        if family.is_latent:
            self.head_dim = self.number("qk_nope_head_dim") + self.number("qk_rope_head_dim")
            self.value_head_dim = self.number("v_head_dim")
        if config.get("model_type") == "qwen":
            self.width //= 2  # its config counts the gate and the other half together
        self._read_experts()
        self._refuse_absurd()

    def _refuse_absurd(self) -> None:
        if self.num_layers > _MOST_LAYERS or self.num_layers * self.experts > _MOST_EXPERTS:
            experts = f" of {self.experts} experts" if self.experts else ""
            raise UnknownShapeError(
                "num_hidden_layers",
                f"num_hidden_layers: {self.num_layers} layers{experts} are more than any model has",
            )
        for key, size in (("hidden_size", self.hidden), ("vocab_size", self.vocabulary), ("head_dim", self.head_dim)):
            if size > _LARGEST:
                raise UnknownShapeError(key, f"{key} {size} is more than any model has")
        if self.experts_per_token > self.experts:
            raise UnknownShapeError(
                "num_experts_per_tok",
                f"num_experts_per_tok {self.experts_per_token} is more than the {self.experts} experts",
            )
        if not self.family.is_latent and self.heads % self.kv_heads:
            unsaid = "" if "num_key_value_heads" in self.config else ", which this family has where it is not said"
            raise UnknownShapeError(
                "num_attention_heads",
                f"num_attention_heads {self.heads} is no multiple of num_key_value_heads {self.kv_heads}{unsaid}",
            )
        if self.head_dim < 1:
            raise UnknownShapeError(
                "hidden_size",
                f"hidden_size {self.hidden} is less than num_attention_heads {self.heads}; a head has at least one "
                "number",
            )

    def _read_experts(self) -> None:
        names = self.family.num_experts_keys
        is_dense = self.is_known and not self.family.experts
        self.experts = 0 if is_dense else self.optional(*names) or 0
        if self.family.experts:
            self.experts = self.experts or self.number(*reversed(names))
        self.experts_per_token = self.number("num_experts_per_tok") if self.experts else 0
        self.expert_width = (self._width(self.family.expert_width_key) or self.width) if self.experts else 0
        self.shared_width = 0
        if self.family.shared_key:
            self.shared_width = self._needed(self.family.shared_key)
            self.shared_width *= self.expert_width if self.family.experts == "deepseek" else 1
        elif not self.is_known:
            self.shared_width = self.optional("shared_expert_intermediate_size") or 0

    def _width(self, *keys: str) -> int | None:
        """Of a family that is known it has to be there: no two have the same where it is not."""
        return self.number(*keys) if self.is_known else self.optional(*keys)

    def _there(self, *keys: str) -> str | None:
        return next((key for key in keys if self.config.get(key) is not None), None)

    def optional(self, *keys: str) -> int | None:
        if (key := self._there(*keys)) is None:
            return None
        number = self.config[key]
        if not isinstance(number, int) or isinstance(number, bool):
            raise UnknownShapeError(key, f"{key} is no whole number; it is {number!r}")
        if number < 0:
            raise UnknownShapeError(key, f"{key} is {number}; it cannot be below 0")
        return number

    def _needed(self, *keys: str) -> int:
        key = self._there(*keys) or keys[0]
        if (found := self.optional(key)) is None:
            raise UnknownShapeError(key, f"{key} is missing; the model needs it")
        return found

    def number(self, *keys: str) -> int:
        if not (found := self._needed(*keys)):
            key = self._there(*keys) or keys[0]
            raise UnknownShapeError(key, f"{key} is 0; a model has at least 1")
        return found

    def says(self, flag: Flag) -> bool:
        if isinstance(flag, str):
            key, _, unsaid = flag.partition("=")
            return self._is(key, unsaid == "true")
        return flag

    def _is(self, key: str, unsaid: bool) -> bool:
        """A key that is true or false."""
        said = self.config.get(key)
        if said is None:
            return unsaid
        if not isinstance(said, bool):
            raise UnknownShapeError(key, f"{key} is neither true nor false; it is {said!r}")
        return said

    def is_mixture(self, layer: int) -> bool:
        """Whether a layer has experts."""
        if not self.experts:
            return False
        if self.family.experts == "deepseek":
            first = self.optional("first_k_dense_replace")
            return layer >= (self.family.first_dense if first is None else first)
        if self.is_known and not self.family.says_dense_layers:
            return True
        dense = self.config.get("mlp_only_layers") or []
        if not isinstance(dense, list):
            raise UnknownShapeError("mlp_only_layers", f"mlp_only_layers is no list of layers; it is {dense!r}")
        step = 1 if self._there("decoder_sparse_step") is None else self.number("decoder_sparse_step")
        return layer not in dense and (layer + 1) % step == 0
