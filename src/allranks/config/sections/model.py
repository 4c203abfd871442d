"""Keys of the model and its tokenizer."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from allranks.config.sections.section import FilePath, Section

AttentionImplementation = Literal[
    "sdpa",
    "eager",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "kernels-community/flash-attn2",
    "kernels-community/flash-attn3",
    "kernels-community/vllm-flash-attn3",
]

NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names by which a config.json says the number of experts of a layer."""


class SpecialTokens(Section):
    """Special tokens of the tokenizer that are set or replaced."""

    bos_token: str | None = None
    """Beginning of a text."""
    eos_token: str | None = None
    """End of a text or of a turn."""
    pad_token: str | None = None
    """Padding."""
    unk_token: str | None = None
    """Unknown text."""
    additional_special_tokens: list[str] | None = None
    """Further tokens that are never split."""


class QuantizationKwargs(Section):
    """How weights that are stored quantized are read, by the names of transformers' Mxfp4Config."""

    dequantize: bool = False
    """Only `true`: as the numbers that they stand for."""


class ModelConfig(Section):
    """The model and its tokenizer."""

    base_model: FilePath = Field(min_length=1)
    """Folder or Hugging Face Hub id of the model to fine-tune."""
    base_model_config: FilePath | None = None
    """Folder or Hub id of the model's configuration, where it is not beside the weights."""
    tokenizer_config: FilePath | None = None
    """Folder or Hub id of the tokenizer; the model's own if not given."""
    model_type: str | None = Field(None, pattern=r"^\w+ForCausalLM$")
    """Accepted for Axolotl's sake: the class is found from the model itself."""
    tokenizer_type: str | None = Field(None, pattern=r"^\w+Tokenizer(Fast)?$")
    """Accepted for Axolotl's sake: the class is found from the tokenizer itself."""
    revision_of_model: str | None = None
    """Branch, tag or commit of the model on the Hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read that code first."""
    special_tokens: SpecialTokens | None = None
    """Special tokens to set on the tokenizer."""
    tokens: list[str] | None = None
    """Tokens to add to the tokenizer; the embedding grows to hold them."""
    added_tokens_overrides: dict[str, str] | None = None
    """New names for tokens that the tokenizer has in reserve, such as `{128011: "<|tool|>"}`; the embedding stays."""
    resize_token_embeddings_to_32x: bool = False
    """Where the embedding grows to hold added tokens, round its size up to a multiple of 32."""
    overrides_of_model_config: dict[str, Any] | None = None
    """Entries of the model's configuration to replace, such as `rope_scaling`."""
    model_quantization_config: Literal["Mxfp4Config"] | None = None
    """How the stored weights are quantized (gpt-oss); read from the model itself where it is not given."""
    model_quantization_config_kwargs: QuantizationKwargs | None = None
    """What is done with weights that are stored quantized."""
    attn_implementation: AttentionImplementation | None = None
    """How attention is computed; the best that the device offers if not given."""

    def overridden(self, config_json: Mapping[str, Any]) -> dict[str, Any]:
        """A model's config.json with `overrides_of_model_config`; one that says the number of experts by another name
        than config.json does says it anew, as to transformers."""
        overrides = self.overrides_of_model_config or {}
        replaced = NUM_EXPERTS if any(key in overrides for key in NUM_EXPERTS) else ()
        return {**{key: value for key, value in config_json.items() if key not in replaced}, **overrides}
