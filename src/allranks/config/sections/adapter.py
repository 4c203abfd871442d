"""Keys of adapters (LoRA and its relatives) and of quantized base weights."""

from typing import Annotated, Literal

from pydantic import Field

from allranks.config.sections.section import FilePath, Section


class BnbConfig(Section):
    """Settings of bitsandbytes, by the names of transformers' BitsAndBytesConfig."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Type of the 4-bit numbers."""
    bnb_4bit_use_double_quant: bool = True
    """Quantize the scales of the 4-bit numbers too: 0.37 bits less a weight."""
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the products with 4-bit weights; what the run computes in if not given."""
    bnb_4bit_quant_storage: Literal["uint8", "float32", "bfloat16", "float16"] | None = None
    """Type that packed weights are held as; what the run computes in with FSDP, else `uint8`, if not given."""
    llm_int8_threshold: float = Field(6.0, ge=0)
    """8-bit weights: columns of the input with larger values are multiplied in 16 bits; 0 for none."""
    llm_int8_skip_modules: list[str] | None = None
    """Modules that stay as they are, 4-bit weights too; the output layer always does."""
    llm_int8_has_fp16_weight: Literal[False] = False
    """Only `false`: the frozen weights themselves are in 8 bits."""
    llm_int8_enable_fp32_cpu_offload: Literal[False] = False
    """Only `false`: layers are not placed by hand."""


class AdapterConfig(Section):
    """Adapters: train a few small matrices instead of the whole model."""

    adapter: Literal["lora", "qlora"] | None = None
    """`lora` trains an adapter, `qlora` one over 4-bit weights; without it the whole model is trained."""
    lora_r: int | None = Field(None, ge=1)
    """Rank of the adapter's matrices."""
    lora_alpha: Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0)] | None = None
    """Scale: the adapter's output is multiplied by alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    lora_target_modules: str | list[str] | None = None
    """Modules that get an adapter: names, or one regular expression. PEFT's choice for the model if not given."""
    lora_target_linear: bool = False
    """Give every linear layer but the output layer an adapter; fused experts are none."""
    lora_target_parameters: str | list[str] | None = None
    """Bare parameters that get an adapter, such as `mlp.experts.gate_up_proj` of mixtures of experts."""
    lora_modules_to_save: list[str] | None = None
    """Modules trained and saved whole, such as `embed_tokens` and `lm_head`."""
    lora_model_dir: FilePath | None = None
    """Folder of an adapter to go on from."""
    lora_fan_in_fan_out: bool = False
    """For models that keep their weights transposed (GPT-2)."""
    peft_use_dora: bool = False
    """Weight-decomposed LoRA (DoRA)."""
    peft_use_rslora: bool = False
    """Rank-stabilised LoRA: scale by alpha / sqrt(r)."""
    peft_init_lora_weights: bool | Literal["gaussian"] | None = None
    """How the adapter starts; PEFT's default if not given."""
    peft_layers_to_transform: list[int] | None = None
    """Indexes of the layers that get an adapter; all if not given."""
    peft_layers_pattern: list[str] | None = None
    """Name of the list of layers, where it is not `layers` or the like."""
    peft_autocast_adapter_dtype: Literal[True] | None = None
    """Accepted: adapters are in float32, unless `bf16: full` is set."""
    loraplus_lr_ratio: float | None = Field(None, gt=0)
    """LoRA+: the B matrices learn so many times as fast as `learning_rate`; 16 is a good start."""
    loraplus_lr_embedding: float = Field(1e-6, gt=0)
    """LoRA+: learning rate of adapters of embeddings."""
    load_in_4bit: bool = False
    """Keep the frozen weights of linear layers in 4 bits; `adapter: qlora` implies it."""
    load_in_8bit: bool = False
    """Keep the frozen weights of linear layers in 8 bits."""
    quantize_moe_experts: bool = False
    """Keep experts that lie in one tensor a layer in 4 or 8 bits too, as `load_in_4bit` or `load_in_8bit` says."""
    bnb_config_kwargs: BnbConfig | None = None
    """Settings of bitsandbytes, which makes the 4-bit and 8-bit weights."""

    @property
    def bnb_settings(self) -> BnbConfig:
        """`bnb_config_kwargs`, or its defaults where the config has none."""
        return self.bnb_config_kwargs or BnbConfig.model_validate({})

    @property
    def quantized_bits(self) -> Literal[4, 8] | None:
        """Bits of a frozen weight, where they are quantized."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None
