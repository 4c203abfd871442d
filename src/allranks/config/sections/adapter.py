"""Keys of adapters (LoRA and its relatives) and of quantized base weights."""

from typing import Literal

from pydantic import Field

from allranks.config.sections.section import Section


class AdapterConfig(Section):
    """Adapters: train a few small matrices instead of the whole model."""

    adapter: Literal["lora", "qlora"] | None = None
    """`lora` trains an adapter; without it the whole model is trained."""
    lora_r: int | None = Field(None, ge=1)
    """Rank of the adapter's matrices."""
    lora_alpha: int | float | None = Field(None, gt=0)
    """Scale: the adapter's output is multiplied by alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    lora_target_modules: str | list[str] | None = None
    """Modules that get an adapter: names, or one regular expression. PEFT's choice for the model if not given."""
    lora_target_linear: bool = False
    """Give every linear layer but the output layer an adapter."""
    lora_modules_to_save: list[str] | None = None
    """Modules trained and saved whole, such as `embed_tokens` and `lm_head`."""
    lora_model_dir: str | None = None
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
    load_in_4bit: bool = False
    """Keep the frozen weights in 4 bits."""
    load_in_8bit: bool = False
    """Keep the frozen weights in 8 bits."""
