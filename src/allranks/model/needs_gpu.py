"""What a config asks for that only a GPU can do: known before torch is imported and a model is loaded."""

from __future__ import annotations

from pathlib import Path

from allranks.config import RunConfig
from allranks.errors import RefusedError

# The driver of AMD's GPUs, which are not counted by NVIDIA's library.
_OTHER_DRIVER = Path("/dev/kfd")


def refuse_without_gpu(cfg: RunConfig, num_gpus: int) -> None:
    """Raises RefusedError naming the first key of `cfg` that needs a GPU, where this node has none."""
    if num_gpus or _OTHER_DRIVER.exists():
        return
    for key, value, way_out in _asked(cfg):
        raise RefusedError(f"{key}: {value} runs on GPUs only, and none is visible on this node; {way_out}")


def _asked(cfg: RunConfig) -> list[tuple[str, str, str]]:
    """(key, what needs a GPU, the way out) of each such key."""
    attention, optimizer = cfg.model.attn_implementation or "", cfg.optimizer.optimizer
    found: list[tuple[str, str, str]] = []
    if attention.startswith(("flash_attention", "kernels-community/")) or attention == "flex_attention":
        way_out = "remove the key (flash_attention and flex_attention set it too): documents are kept apart anyway"
        found.append(("attn_implementation", attention, way_out))
    kernels = cfg.kernels
    for key in (*(f"liger_{part}" for part in kernels.liger_modules), "liger_fused_linear_cross_entropy"):
        if getattr(kernels, key):
            found.append((key, "Liger", "remove the key"))
    if kernels.cut_cross_entropy:
        found.append(("cut_cross_entropy", "Cut Cross Entropy", "remove it and its plugin"))
    if optimizer.startswith("paged_") or "ademamix" in optimizer:
        found.append(("optimizer", optimizer, "use adamw_torch_fused, or adamw_bnb_8bit for small state"))
    return found
