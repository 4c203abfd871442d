"""A full model out of a sharded checkpoint, a decoder layer at a time."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from allranks.errors import CheckpointError
from allranks.export.checkpoint import Checkpoint
from allranks.export.compare import compare_full
from allranks.export.consent import runs_its_own_code
from allranks.export.safetensors_file import Entry, lay_out, write
from allranks.listing import si_bytes
from allranks.model.generation import generation_config


def write_full_model(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
    report: Callable[[str], None],
) -> None:
    """Write safetensors files, their index, config.json and generation_config.json.

    Names and shapes are those that `save_pretrained` would write: tied weights once, experts one by one.

    Raises:
        CheckpointError: the checkpoint lacks a tensor of the model, or holds one that the model does not have.
    """
    model = empty_model(checkpoint)
    dtype = dtype or stored_dtype(model)
    groups = _groups(_names(checkpoint, model))

    def converted(group: list[str], tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
        made = revert_weight_conversion(model, {name: tensors[name] for name in group})
        return [(name, _cast(tensor, dtype)) for name, tensor in made.items()]

    def entries() -> Iterator[Entry]:
        for group in groups:
            empty = {
                name: torch.empty(checkpoint.tensors[name][0], dtype=checkpoint.tensors[name][1], device="meta")
                for name in group
            }
            yield from (Entry(name, tuple(tensor.shape), tensor.dtype) for name, tensor in converted(group, empty))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for group in groups:
            yield from converted(group, checkpoint.read(group))

    layout = lay_out(list(entries()), max_shard_bytes)
    report(f"writing {si_bytes(layout.total_bytes, 2)} in {len(layout.files)} file(s)")
    write(folder, layout, tensors())
    write_configs(checkpoint, model, folder, dtype)
    compare_full(checkpoint, folder, groups, dtype, report)


def empty_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model of a checkpoint without its weights."""
    trained_with_it = bool(checkpoint.config.get("trust_remote_code"))
    trusted = runs_its_own_code(checkpoint.hf, trained_with_it=trained_with_it, consent=checkpoint.trust_remote_code)
    config = AutoConfig.from_pretrained(checkpoint.hf, trust_remote_code=trusted)
    with torch.device("meta"):
        # Nothing is computed, and a kernel that config.json may name would be code from elsewhere.
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted, attn_implementation="eager")


def stored_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype that the run computed in, as the checkpoint's config.json tells it."""
    dtype = model.config.dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    return dtype or torch.float32


def write_configs(checkpoint: Checkpoint, model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json and generation_config.json beside the weights."""
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if (checkpoint.hf / "generation_config.json").is_file():
        generation_config(checkpoint.hf, model.config)[0].save_pretrained(folder)


def _names(checkpoint: Checkpoint, model: PreTrainedModel) -> list[str]:
    """The tensors to write, in the model's order: all of its state but the names that are tied to others."""
    wanted = model.state_dict(keep_vars=True)
    surplus = sorted(checkpoint.tensors.keys() - wanted.keys())
    first_of: dict[int, str] = {}
    for name, tensor in wanted.items():
        first_of.setdefault(id(tensor), name)
    # Tied names share a tensor; transformers keeps the source of each tie.
    sources = {id(wanted[source]): source for source in model.all_tied_weights_keys.values() if source in wanted}
    names = [name for name, tensor in wanted.items() if sources.get(id(tensor), first_of[id(tensor)]) == name]
    missing = sorted(set(names) - checkpoint.tensors.keys())
    if surplus or missing:
        raise CheckpointError(
            f"{checkpoint.path} does not fit {type(model).__name__}: "
            f"lacks {json.dumps(missing[:8])}, has besides {json.dumps(surplus[:8])}"
        )
    return names


def _groups(names: list[str]) -> list[list[str]]:
    """Put the tensors of one decoder layer together: conversions combine tensors of a layer, never of two."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r"(.*?\.\d+)\.", name)
        groups.setdefault(layer[1] if layer else name, []).append(name)
    return list(groups.values())


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
