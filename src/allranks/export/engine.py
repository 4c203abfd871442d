"""The logits of a checkpoint, computed as its run computed them: by the training's own model, filled by the training's
own tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allranks.config import RunConfig
from allranks.config.load import resolve_mapping
from allranks.config.run import SECTION_OF
from allranks.errors import CheckpointError
from allranks.export.checkpoint import Checkpoint
from allranks.export.quantized import plainly_computing
from allranks.listing import few
from allranks.model.adapter import is_trained
from allranks.model.batch import TorchBatch
from allranks.model.build import build_model
from allranks.model.placement import Placement
from allranks.model.train_model import TrainModel

# What makes the model; how it was trained, and on which machines, is of no account here.
_SECTIONS = {"model", "adapter"}
# The vocabulary has its size by now.
_OF_THE_TOKENIZER = {"tokens", "special_tokens", "tokenizer_config", "added_tokens_overrides", "tokenizer_type"}
_NEEDS_CUDA = "flash"
_READ_AT_ONCE_BYTES = 2**28


def trained_logits(
    checkpoint: Checkpoint,
    ids: Tensor,
    *,
    num_rows: int,
    weights: Path,
    adapter: Path | None = None,
    base_model: str | None = None,
    quantized: bool = True,
    rounded_to: torch.dtype | None = None,
) -> Tensor:
    """The logits [T, vocabulary] of the token ids [T], one document, in float32 on the CPU.

    `num_rows`: of the trained embedding. `weights`: of a model that was trained whole, a folder of tensors of its
    shapes, each of which the checkpoint's own replaces. `adapter`: the adapter's folder, for a run that went on from
    another one. `base_model`: where that of an adapter is now. `quantized`: over the base model's weights as the run
    quantized them. `rounded_to`: each trained tensor is rounded to this dtype first, as it is written.

    Raises:
        AllranksError: the model cannot be made here.
    """
    cfg = _config(checkpoint, weights, adapter, base_model, quantized, len(ids))
    model = build_model(cfg, Placement("single", torch.device("cpu")), tokenizer=range(num_rows))
    _fill(model, checkpoint, rounded_to)
    model.hf_model.eval()
    plainly_computing(model.hf_model)
    length = len(ids)
    none = torch.zeros(0, dtype=torch.int64)
    batch = TorchBatch(ids[None], torch.arange(length)[None], (length,), none, none, length, (length,))
    return model.logits(batch)[0].float()


def _config(
    checkpoint: Checkpoint, weights: Path, adapter: Path | None, base_model: str | None, quantized: bool, length: int
) -> RunConfig:
    """The run's config with what makes its model, for one process that computes in float32 on a CPU."""
    keys: dict[str, Any] = {
        key: value
        for key, value in checkpoint.config.items()
        if SECTION_OF.get(key) in _SECTIONS and key not in _OF_THE_TOKENIZER
    }
    if _NEEDS_CUDA in str(keys.get("attn_implementation")) or keys.get("attn_implementation") == "flex_attention":
        del keys["attn_implementation"]
    if checkpoint.is_adapter:
        keys |= {"base_model": base_model or keys["base_model"]}
        if base_model is not None:
            keys.pop("revision_of_model", None)
        if keys.get("lora_model_dir") and adapter is not None:
            keys["lora_model_dir"] = str(adapter)  # the other one may be gone
        # Neither transformers nor PEFT can hold an adapter's experts packed: as its user, it computes with whole ones.
        keys |= {"quantize_moe_experts": False}
        if not quantized:
            keys |= {"adapter": "lora", "load_in_4bit": False, "load_in_8bit": False}
    else:
        for key in ("revision_of_model", "overrides_of_model_config"):
            keys.pop(key, None)
        keys |= {"base_model": str(weights), "base_model_config": str(checkpoint.hf)}
    keys |= {"trust_remote_code": checkpoint.trust_remote_code and bool(keys.get("trust_remote_code"))}
    keys |= {"datasets": [{"path": "none", "type": "completion"}], "learning_rate": 1.0}
    keys |= {"bf16": False, "sequence_len": length, "micro_batch_size": 1, "sample_packing": False}
    return resolve_mapping(keys, str(checkpoint.path))


@torch.no_grad()
def _fill(model: TrainModel, checkpoint: Checkpoint, rounded_to: torch.dtype | None) -> None:
    """Copy the checkpoint's tensors into the model."""
    whole = not checkpoint.is_adapter
    named = list(model.hf_model.named_parameters(remove_duplicate=False))
    places: dict[str, Tensor] = {**dict(named), **dict(model.hf_model.named_buffers())}
    names = [name for name in checkpoint.tensors if whole or is_trained(name)]
    filled = {id(places[name]) for name in names if name in places}
    missing = [name for name, tensor in named if (whole or tensor.requires_grad) and id(tensor) not in filled]
    if missing or (surplus := [name for name in names if name not in places]):
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model that its config makes: {few(missing or surplus)}"
        )
    for some in _portions(checkpoint, names):
        for name, tensor in checkpoint.read(some).items():
            if rounded_to is not None and tensor.is_floating_point():
                tensor = tensor.to(rounded_to)
            places[name].copy_(tensor)


def _portions(checkpoint: Checkpoint, names: list[str]) -> Iterator[list[str]]:
    """`names` in lists of tensors that are held in memory together."""
    some: list[str] = []
    size = 0
    for name in names:
        shape, dtype = checkpoint.tensors[name]
        num_bytes = shape.numel() * dtype.itemsize
        if some and size + num_bytes > _READ_AT_ONCE_BYTES:
            yield some
            some, size = [], 0
        some.append(name)
        size += num_bytes
    if some:
        yield some
