"""Is what was exported what was trained? Every written tensor is read again and compared with the training's.

Nothing of how the files were written is used here: the folder is read as a training that starts from it would read it,
by its own config.json with the ties that stand there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from allranks.errors import CheckpointError
from allranks.export.checkpoint import Checkpoint
from allranks.export.consent import runs_its_own_code
from allranks.listing import few
from allranks.model.conversion import Conversion
from allranks.model.loading import LoadPlan, plan_loading
from allranks.model.weights import find_weights, read_header, read_tensor

_SHOWN = 4


@dataclass
class Folder:
    """The weights of a model's folder by the names that they have in the model, each read when it is asked for."""

    plan: LoadPlan
    _of: dict[str, Conversion] = field(default_factory=dict)
    _tied: dict[str, str] = field(default_factory=dict)
    _last: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._of = {conversion.target: conversion for conversion in self.plan.conversions}
        self._tied = {name: source for source, names in self.plan.tied.items() for name in names}

    def read(self, name: str) -> Tensor | None:
        """The tensor of this name, or None where the folder has none."""
        name = self._tied.get(name, name)
        if name in self._last:  # a conversion may make several
            return self._last[name]
        conversion = self._of.get(name)
        if conversion is None:
            return None
        stored = {part: read_tensor(self.plan.stored[part]) for part, _ in conversion.stored}
        if conversion.converter is None:
            return next(iter(stored.values()))
        self._last = conversion.convert(self.plan.unloaded, stored)
        return self._last.get(name)


def written_folder(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> tuple[Folder, PreTrainedModel]:
    """The weights in `folder`, and the model without weights that its config.json makes.

    Raises:
        CheckpointError: its config.json tells another dtype than `dtype`, that of the weights.
    """
    trained_with_it = bool(checkpoint.config.get("trust_remote_code"))
    trusted = runs_its_own_code(folder, trained_with_it=trained_with_it, consent=checkpoint.trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    if str(config.dtype).removeprefix("torch.") != str(dtype).removeprefix("torch."):
        raise CheckpointError(
            f"what was exported of {checkpoint.path} is in {dtype}, and its config.json says {config.dtype}, in which "
            "it would be loaded; nothing was left in the folder. The checkpoint is untouched: please report this"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted, attn_implementation="eager")
    return Folder(plan_loading(model, find_weights(folder), set())), model


def compare_full(
    checkpoint: Checkpoint, folder: Path, groups: list[list[str]], dtype: torch.dtype, report: Callable[[str], None]
) -> None:
    """Compare a full model with the checkpoint, by `groups` of its tensors' names. Reports one line.

    Raises:
        CheckpointError: a written tensor is not the trained one.
    """
    written, _ = written_folder(checkpoint, folder, dtype)
    different = []
    for group in groups:
        for name, trained in checkpoint.read(group).items():
            there = written.read(name)
            wanted = trained.to(dtype) if trained.is_floating_point() else trained
            if there is None or not _same(there, wanted):
                different.append(name)
    _conclude(checkpoint, different, sum(map(len, groups)), report, ", byte for byte")


def compare_adapter(
    checkpoint: Checkpoint, file: Path, trained: Mapping[str, Tensor], report: Callable[[str], None]
) -> None:
    """Compare an adapter's file with the `trained` tensors by their names there. Reports one line.

    Raises:
        CheckpointError: a written tensor is not the trained one.
    """
    written = read_header(file)
    different = sorted(written.keys() ^ trained.keys())
    different += [
        name for name in sorted(written.keys() & trained.keys()) if not _same(read_tensor(written[name]), trained[name])
    ]
    _conclude(checkpoint, different, len(trained), report, ", byte for byte")


@dataclass
class Closeness:
    """How far tensors that were written in `dtype` may be, and are, from the sums that training computed with."""

    dtype: torch.dtype
    changed: float = 0.0
    off: float = 0.0

    def is_close(self, there: Tensor | None, base: Tensor | None, wanted: Tensor) -> bool:
        """Whether `there` is `wanted`, made of `base` (None: whole) by an adapter, up to rounding to the dtype."""
        if there is None or there.shape != wanted.shape:
            return False
        if not wanted.is_floating_point():
            return torch.equal(there, wanted)
        if base is None or base is wanted:
            return _same(there, wanted.to(self.dtype))
        change = (wanted - base).abs()
        off = (there.float() - wanted).abs()
        self.changed += float(change.square().sum())
        self.off += float(off.square().sum())
        # One rounding of each of the two, and of their sum. 1e-6 of the largest: the order of a product's sums.
        eps = torch.finfo(self.dtype).eps
        allowed = eps * (base.abs() + change) + (eps + 1e-6) * change.max() + torch.finfo(self.dtype).tiny
        return bool((off <= allowed).all())

    @property
    def told(self) -> str:
        if not self.changed:
            return ""
        share = (self.off / self.changed) ** 0.5
        name = str(self.dtype).removeprefix("torch.")
        lost = f"; rounding to {name} is {share:.1%} of what the adapter changes" if share >= 0.001 else ""
        return lost + (": --dtype float32 keeps it" if share >= 0.5 and self.dtype != torch.float32 else "")


def conclude_merged(
    checkpoint: Checkpoint, different: list[str], num: int, close: Closeness, report: Callable[[str], None]
) -> None:
    """Report the comparison of a merged model. Raises CheckpointError where tensors differ."""
    _conclude(checkpoint, different, num, report, close.told)


def _same(there: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are of one kind and hold the same bytes: also what is not a number."""
    if there.dtype != wanted.dtype or there.shape != wanted.shape:
        return False
    return torch.equal(there.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8))


def _conclude(checkpoint: Checkpoint, different: list[str], num: int, report: Callable[[str], None], how: str) -> None:
    if different:
        raise CheckpointError(
            f"what was exported of {checkpoint.path} is not what was trained: {few(different, _SHOWN)} "
            "differ from what training computed with; nothing was left in the folder. The checkpoint is untouched: "
            "export it without --merge, and please report this"
        )
    report(f"compared with the trained model: all {num} tensors agree{how}")
