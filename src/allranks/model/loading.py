"""Fill a model from safetensors: every rank reads only what it holds, straight into its own memory."""

import re
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from allranks.errors import ConfigError
from allranks.listing import few
from allranks.model.conversion import Conversion, Unloaded, conversions, missing_patterns
from allranks.model.quantized import quantized_layers
from allranks.model.quantized.stored import PackedTensor
from allranks.model.sharding import filling, local_part
from allranks.model.weights import StoredTensor, mean_row, read_rows, read_tensor, same_values
from allranks.model.zero import is_partitioned

# More names than this do not help anybody to see what is wrong.
_SHOWN = 12


@dataclass
class LoadPlan:
    """Which stored tensors make which tensors of the model. Names are those of the model before any adapter.

    `grown`: vocabulary tensors that got more rows than are stored (added tokens); new rows are the mean of the old.
    `tied`: for a stored name, the further names of the same tensor.
    """

    stored: dict[str, StoredTensor]
    conversions: list[Conversion]
    unloaded: Unloaded
    grown: set[str] = field(default_factory=set)
    tied: dict[str, list[str]] = field(default_factory=dict)


def plan_loading(model: PreTrainedModel, stored: dict[str, StoredTensor], grown: set[str]) -> LoadPlan:
    """Match a checkpoint with a model whose parameters may all be on the meta device. Reads no weights.

    Raises:
        ConfigError: tensors of the model that the checkpoint lacks, tensors of the checkpoint that the model does not
            have, wrong shapes; each listed.
    """
    targets: dict[str, Tensor] = model.state_dict(keep_vars=True)
    found, unexpected = conversions(model, stored, targets)
    problems = _problems("the model has no place for", unexpected)

    unloaded = Unloaded(model.config, targets)
    filled = set()
    shapes = []
    for conversion in found:
        if conversion.converter is None:
            filled.add(conversion.target)
            have, want = stored[conversion.stored[0][0]].shape, tuple(targets[conversion.target].shape)
            may_grow = conversion.target in grown and have[1:] == want[1:] and have[0] < want[0]
            if have != want and not may_grow:
                shapes.append(f"{conversion.target} (stored {list(have)}, the model has {list(want)})")
        else:
            parts = {name: _like(stored[name]) for name, _ in conversion.stored}
            try:
                made = conversion.convert(unloaded, parts)
            except Exception as error:  # whatever the conversion trips over: its parts are not those that it expects
                shapes.append(f"{conversion.target} (cannot be made from {_some(list(parts))}: {error})")
                filled.add(conversion.target)
                continue
            for name, tensor in made.items():
                filled.add(name)
                if name not in targets:
                    shapes.append(f"{name} (made from {_some(list(parts))}, not in the model)")
                elif tensor.shape != targets[name].shape:
                    shapes.append(f"{name} (stored {list(tensor.shape)}, the model has {list(targets[name].shape)})")
    problems += _problems("wrong shapes:", shapes)

    # A tied tensor needs to be stored only once, under any of its names.
    filled_ids = {id(targets[name]): name for name in filled if name in targets}
    tied: dict[str, list[str]] = defaultdict(list)
    for name, tensor in targets.items():
        if name not in filled and id(tensor) in filled_ids:
            tied[filled_ids[id(tensor)]].append(name)
    may_miss = missing_patterns(model)
    missing = [
        name
        for name, tensor in targets.items()
        if name not in filled and id(tensor) not in filled_ids and not any(re.search(p, name) for p in may_miss)
    ]
    problems += _problems("the checkpoint lacks", missing)
    if problems:
        folder = next(iter(stored.values())).file.parent if stored else "the checkpoint"
        raise ConfigError(f"the weights in {folder} do not fit {type(model).__name__}: {'; '.join(problems)}")
    return LoadPlan(stored, found, unloaded, grown & {r.target for r in found}, tied)


def fill(model: nn.Module, plan: LoadPlan) -> None:
    """Read every tensor that `plan` names into the model's memory: this rank's rows only, in the model's dtype.

    The model may carry an adapter by now, and be sharded. Peak memory beyond the model is one small buffer, or the
    stored parts of one converted tensor (all experts of a layer; only this rank's where they are sharded), or one
    whole tensor that is quantized.

    Raises:
        ConfigError: a tensor was left unfilled (that is a bug of allranks or of the model's code).
    """
    places: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not is_adapter(name):
            places[base_name(name)].append((name, tensor))
    quantized = {id(layer.weight): layer for layer in quantized_layers(model)}
    filled: dict[int, StoredTensor | None] = {}
    for conversion in plan.conversions:
        # An adapter may have made copies of a tied module, which are tensors of their own by now.
        here = [place for name in (conversion.target, *plan.tied.get(conversion.target, ())) for place in places[name]]
        if conversion.converter is None:
            stored = plan.stored[conversion.stored[0][0]]
            for _, tensor in here:
                before = filled.setdefault(id(tensor), stored)
                if isinstance(stored, PackedTensor):
                    if id(tensor) not in quantized:
                        raise ConfigError(
                            f"{stored.name} is stored quantized, and the model needs it as it was (it is trained "
                            "whole, or the output layer): use the model that the base model was made from"
                        )
                    quantized[id(tensor)].take_packed(*stored.read())
                elif id(tensor) in quantized:
                    quantized[id(tensor)].take(read_tensor(stored))
                elif before is stored:
                    _copy_rows(stored, tensor, grown=conversion.target in plan.grown)
                elif before is not None and not same_values(before, stored):
                    raise ConfigError(
                        f"the model's config ties {before.name} and {stored.name} to one tensor, but the checkpoint "
                        "holds different values for them; set overrides_of_model_config: {tie_word_embeddings: false}"
                    )
        else:
            # What is quantized is needed whole: all of it has one scale of scales.
            in_rows = [tensor for _, tensor in here if id(tensor) not in quantized]
            for name, value in _converted(conversion, plan, in_rows):
                for _, tensor in places.get(name, []):
                    if id(tensor) in quantized:
                        quantized[id(tensor)].take(value)
                        filled[id(tensor)] = None
                        continue
                    with filling(tensor) as (part, first):
                        rows = value[first : first + len(part)] if len(value) != len(part) else value
                        part.copy_(rows.view_as(part))
                    filled[id(tensor)] = None
    left = [
        name
        for entries in places.values()
        for name, tensor in entries
        if id(tensor) not in filled and (tensor.is_meta or not _may_keep(model, name))
    ]
    if left:
        raise ConfigError(f"these tensors got no weights: {_some(left)}")


def base_name(name: str) -> str:
    """The name that a tensor had before PEFT wrapped its module."""
    for wrapper in (".base_layer.", ".original_module.", ".modules_to_save.default."):
        while wrapper in name:  # a wrapper of one parameter may be inside of another's
            name = name.replace(wrapper, ".")
    return name


def is_adapter(name: str) -> bool:
    """Whether a tensor was added by PEFT, rather than moved by it."""
    return ".lora_" in name


def _copy_rows(stored: StoredTensor, tensor: Tensor, *, grown: bool) -> None:
    with filling(tensor) as (part, first):
        _read_part(stored, part, first, grown=grown)


def _read_part(stored: StoredTensor, part: Tensor, first: int, *, grown: bool) -> None:
    if part.numel() == 0:
        return
    if part.ndim == 0:
        read_rows(stored, 0, part.view(1))
        return
    there = max(0, min(len(part), stored.shape[0] - first)) if grown else len(part)
    if not part.is_contiguous():
        whole = torch.empty(part.shape, dtype=part.dtype)
        read_rows(stored, first, whole[:there])
        part[:there].copy_(whole[:there])
    elif there:
        read_rows(stored, first, part[:there])
    if there < len(part):
        part[there:] = mean_row(stored).to(part.dtype).to(part.device)


def _converted(conversion: Conversion, plan: LoadPlan, places: list[Tensor]) -> list[tuple[str, Tensor]]:
    if conversion.stacks_first_dim and len(places) == 1 and not is_partitioned(places[0]):
        part, first = local_part(places[0])
        if len(part) == 0:
            return [(conversion.target, part)]
        conversion = conversion.rows(first, first + len(part))
    tensors = {name: read_tensor(plan.stored[name]) for name, _ in conversion.stored}
    return list(conversion.convert(plan.unloaded, tensors).items())


def _like(stored: StoredTensor) -> Tensor:
    return torch.empty(stored.shape, dtype=stored.dtype, device="meta")


def _may_keep(model: nn.Module, name: str) -> bool:
    return any(re.search(pattern, base_name(name)) for pattern in missing_patterns(model))  # type: ignore[arg-type]


def _problems(what: str, names: list[str]) -> list[str]:
    return [f"{what} {_some(names)}"] if names else []


def _some(names: list[str]) -> str:
    return few(sorted(names), _SHOWN)
