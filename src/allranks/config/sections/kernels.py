"""Keys of the loss and of kernels from other libraries."""

from typing import Literal

from pydantic import Field

from allranks.config.sections.section import Section

CUT_CROSS_ENTROPY = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
Plugin = Literal[
    "axolotl.integrations.liger.LigerPlugin", "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
]


class KernelConfig(Section):
    """How the loss is made, and kernels of other libraries (CUDA only)."""

    chunked_cross_entropy: bool | None = None
    """Make the loss without ever holding all logits. Not given: for every model whose code allows it."""
    chunked_cross_entropy_num_chunks: int | None = Field(None, ge=1)
    """Number of chunks; chosen by the size of the logits (64 MiB a chunk, at most 20 chunks) if not given."""
    cut_cross_entropy: bool | None = None
    """Let the library `cut-cross-entropy` make the loss; on if its plugin is named."""
    liger_rope: bool = False
    """Liger's kernel for rotary position embeddings."""
    liger_rms_norm: bool = False
    """Liger's kernel for RMSNorm."""
    liger_layer_norm: bool = False
    """Liger's kernel for LayerNorm."""
    liger_glu_activation: bool = False
    """Liger's kernel for gated activations (SwiGLU, GeGLU)."""
    liger_fused_linear_cross_entropy: bool = False
    """Let Liger make the loss, in chunks as `chunked_cross_entropy` does."""
    plugins: list[Plugin] | None = None
    """Axolotl's plugins, by name. Only these two; the keys above say the same without them."""

    @property
    def liger_modules(self) -> dict[str, bool]:
        """Which parts of the model Liger is to compute, by the names of its own arguments' meaning."""
        return {
            "rope": self.liger_rope,
            "rms_norm": self.liger_rms_norm,
            "layer_norm": self.liger_layer_norm,
            "glu_activation": self.liger_glu_activation,
        }
