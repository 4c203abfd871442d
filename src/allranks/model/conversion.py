"""From a checkpoint's tensor names to the model's, by transformers' own table of conversions.

transformers 5 keeps a model's weights in another shape than many checkpoints do: experts in one tensor, parts renamed,
prefixes changed. `transformers.conversion_mapping` says how; here its entries are applied one target at a time.
"""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from allranks.errors import ConfigError


@dataclass
class Unloaded:
    """What a conversion may ask of the model: its config and the shape of a parameter, before any adapter."""

    config: PreTrainedConfig
    tensors: dict[str, Tensor]

    def get_parameter(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass
class Conversion:
    """How one target, or a few at once, is made from stored tensors: a plain copy, or a conversion of several."""

    target: str
    stored: list[tuple[str, str]] = field(default_factory=list)  # (name in the checkpoint, pattern that it matched)
    converter: WeightConverter | None = None

    def convert(self, model: "Unloaded", tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the conversion on the stored tensors (by checkpoint name); return the targets by name in the model."""
        converter = deepcopy(self.converter)
        assert converter is not None
        for name, pattern in self.stored:
            if name in tensors:
                converter.add_tensor(self.target, name, pattern, tensors[name])  # type: ignore[arg-type]
        made: dict[str, Any] = converter.convert(self.target, model=model, config=model.config)
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}

    @property
    def stacks_first_dim(self) -> bool:
        """Whether the first dimension of the target counts stored tensors (experts), so that rows can be made alone."""
        if self.converter is None or not self.converter.operations:
            return False
        head, *rest = self.converter.operations
        return (
            isinstance(head, MergeModulelist)
            and head.dim == 0
            and len(self.converter.target_patterns) == 1
            and all(getattr(operation, "dim", 0) > 0 for operation in rest)
        )

    def rows(self, first: int, last: int) -> "Conversion":
        """The conversion for rows `first` … `last` only, where `stacks_first_dim`."""
        by_pattern: dict[str, list[tuple[str, str]]] = {}
        for entry in self.stored:
            by_pattern.setdefault(entry[1], []).append(entry)
        return Conversion(
            self.target, [e for entries in by_pattern.values() for e in entries[first:last]], self.converter
        )


def conversions(
    model: PreTrainedModel, stored: Iterable[str], targets: Iterable[str]
) -> tuple[list[Conversion], list[str]]:
    """Match the checkpoint's names with the model's.

    `model`: as transformers makes it, before any adapter. Returns the conversions and the names that nothing in the
    model takes (those that the model says to ignore left out).
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    # The values only have to be there: transformers asks whether a name is known when it adds or drops a prefix.
    known: dict[str, bool] = dict.fromkeys(targets, True)
    found: dict[str, Conversion] = {}
    unexpected = []
    # In natural order, so that experts are stacked by number.
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if target not in known and name in known:
            target, pattern = name, None
        if target not in known:
            unexpected.append(name)
            continue
        conversion = found.setdefault(target, Conversion(target))
        if (pattern is None and conversion.stored) or (
            pattern is not None and conversion.stored and conversion.converter is None
        ):
            raise ConfigError(f"the checkpoint stores {target} twice, as {conversion.stored[0][0]} and as {name}")
        if pattern is not None:
            conversion.converter = by_pattern[pattern]
        conversion.stored.append((name, pattern or name))
    return list(found.values()), _without_ignored(unexpected, unexpected_patterns(model))


def unexpected_patterns(model: PreTrainedModel) -> set[str]:
    """Names (patterns) that a checkpoint may hold and this model does not take, as transformers sees it."""
    patterns = set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    buffers = [name for name, _ in model.named_buffers()]
    # Old checkpoints stored these buffers, which every model computes now.
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return patterns


def missing_patterns(model: PreTrainedModel) -> set[str]:
    """Names (patterns) that a checkpoint may lack, as transformers sees it."""
    return set(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())


def _without_ignored(names: list[str], patterns: set[str]) -> list[str]:
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]
