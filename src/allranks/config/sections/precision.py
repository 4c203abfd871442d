"""Keys of number formats."""

from typing import Literal

from allranks.config.sections.section import Section

ComputeType = Literal["auto", "float32", "bfloat16", "float16"]


class PrecisionConfig(Section):
    """Number formats. Without any key: as `bf16: auto`."""

    bf16: bool | Literal["auto", "full"] | None = None
    """bfloat16 for computation (`true`), for the trained weights too (`full`), or by the device (`auto`): bfloat16
    where it has it, float16 on other GPUs (float32 with FSDP), float32 on CPUs."""
    fp16: bool | None = None
    """float16 for computation."""
    float32: bool | None = None
    """float32 for weights and computation, as `bf16: false`."""
    tf32: bool | Literal["auto"] | None = None
    """Let float32 products use TF32 tensor cores."""
    bfloat16: bool | None = None
    """bfloat16 for weights and computation, as `bf16: full`."""
    float16: bool | None = None
    """float16 for weights and computation: refused, as such weights cannot be trained; use `fp16` or `bf16`."""

    @property
    def compute(self) -> ComputeType:
        """Type of the forward and backward pass; `auto` until a device is known."""
        if self.bf16 in (True, "full") or self.bfloat16:
            return "bfloat16"
        if self.fp16 or self.float16:
            return "float16"
        if self.bf16 is False or self.float32:
            return "float32"
        return "auto"

    @property
    def low_precision_weights(self) -> bool:
        """Whether the trained weights themselves are kept in the compute type, without a float32 copy."""
        return self.bf16 == "full" or bool(self.bfloat16) or bool(self.float16)
