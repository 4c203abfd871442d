"""How many numbers an adapter will train at least, by the headers of its model's files. Needs no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from allranks.config.sections.adapter import AdapterConfig
from allranks.plan.same import Same
from allranks.plan.stored_size import stored_shapes
from allranks.plan.workload import ModelShape

# Routers are a class of their own in most models; only the gate of a shared expert is a linear layer.
_NO_LINEAR_LAYER = re.compile(
    r"(^|\.)(experts\.|\w*emb\w*|wte$|wpe$|(?!shared_expert_gate$)(\w+_)?gate$|(\w+_)?router(\.|$))"
)
# Modules of Mixtral's files -> those of its model.
_RENAMED = (".block_sparse_moe.", ".mlp.")
_TAKEN_FOR_EXPERTS = {"gate_proj", "up_proj", "down_proj"}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_PARTS = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj"}
_PARTS |= {"down_proj": "down_proj", "w2": "down_proj"}
_LAYER_NUMBER = r"(?:^|.*\.)[^.]*\.(\d+)\."


def num_adapter_elements(folder: Path, options: AdapterConfig, config: Mapping[str, Any]) -> int | None:
    """Elements of the tensors that an adapter on the model in `folder`, whose config.json says `config`, trains and
    saves; None where nothing is known.

    A lower bound: what the files do not tell for sure is left out, such as PEFT's own choice of modules.
    """
    if options.lora_model_dir:
        shapes = stored_shapes(Path(options.lora_model_dir).expanduser(), "adapter_model")
        return sum(map(math.prod, shapes.values())) if shapes else None
    stored = stored_shapes(folder)
    if stored is None or not config or "vision_config" in config or "audio_config" in config:
        return None  # of such a model's files only the part for text is read
    return num_elements(stored, config, options) or None


def continued(options: AdapterConfig) -> AdapterConfig:
    """`options` with what the adapter in `lora_model_dir` says of itself, for a plan of going on from it; as they are
    where it cannot be read."""
    try:
        told = json.loads((Path(options.lora_model_dir or "").expanduser() / "adapter_config.json").read_text())
        asked = {
            "lora_r": told["r"],
            "lora_alpha": told.get("lora_alpha"),
            "lora_dropout": told.get("lora_dropout") or 0.0,
            "lora_target_modules": told.get("target_modules"),
            "lora_target_parameters": told.get("target_parameters"),
            "lora_modules_to_save": told.get("modules_to_save"),
            "peft_use_dora": told.get("use_dora") is True,
            "peft_layers_to_transform": told.get("layers_to_transform"),
        }
        read = AdapterConfig.model_validate(asked)
        return options.model_copy(update={key: getattr(read, key) for key in asked})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return options


def num_elements(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], options: AdapterConfig) -> int:
    """The same for a model with tensors of these shapes, whose config.json says `config`."""
    rank = options.lora_r or 1  # which the config has to give
    matrices = adapted_matrices(shapes, config, options).values()
    of_layers = sum(rank * (rows + columns) + (rows if options.peft_use_dora else 0) for rows, columns in matrices)
    of_parameters = sum(
        rank * math.prod(shape[:-2]) * sum(shape[-2:]) for shape in adapted_parameters(shapes, config, options).values()
    )
    return of_layers + of_parameters + _of_whole_modules(shapes, config, options)


def adapted_matrices(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], options: AdapterConfig
) -> dict[str, tuple[int, int]]:
    """Module -> (rows, columns) of each matrix that gets a pair of its own."""
    tensors, in_layers = _as_in_model(shapes, config), _in_layers(options)
    vocabulary, is_asked = config.get("vocab_size"), _asked(options.lora_target_modules, config.get("vocab_size"))
    adapted = {}
    for name, shape in tensors.items():
        module = name.removesuffix(".weight")
        if module == name or len(shape) != 2:
            continue
        linear = options.lora_target_linear and _is_inner_linear(module, shape, vocabulary)
        if (linear or is_asked(module, shape)) and in_layers(module):
            adapted[module] = (shape[0], shape[1])
    return adapted


def adapted_parameters(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], options: AdapterConfig
) -> dict[str, tuple[int, ...]]:
    """Parameter -> its shape, of those that are adapted as they are: a pair for each expert of one that holds all."""
    asked = options.lora_target_parameters
    names = [asked] if isinstance(asked, str) else asked or ()
    if not names:
        return {}
    tensors = _as_in_model(shapes, config)
    return {name: shape for name, shape in tensors.items() if len(shape) in (2, 3) and _ends_in(name, names)}


def misread_names(matrices: Collection[str], shape: ModelShape, options: AdapterConfig) -> set[str]:
    """Of adapted modules, the names that PEFT takes for a mixture's experts, where it then cannot load the adapter
    again: under quantized weights, and with DoRA (`model.adapter`)."""
    if not shape.num_experts or not (options.quantized_bits or options.peft_use_dora):
        return set()
    return {name.rpartition(".")[2] for name in matrices} & _TAKEN_FOR_EXPERTS


def names_in_model(stored: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The names that the model has for its tensors, which the keys of an adapter go by, and of its linear layers but
    the output layer."""
    tensors, vocabulary = _as_in_model(stored, config), config.get("vocab_size")
    matrices = {name.removesuffix(".weight"): shape for name, shape in tensors.items() if name.endswith(".weight")}
    return list(tensors), [name for name, shape in matrices.items() if _is_inner_linear(name, shape, vocabulary)]


def _as_in_model(stored: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """Tensors by the names that the model has for them: experts that are stored one by one lie together, a shared
    output layer is there. Without layers beyond the model's last, which predict further tokens."""
    num_layers = config.get("num_hidden_layers")
    return _named(Same(stored), num_layers if isinstance(num_layers, int) else None)


@lru_cache(maxsize=4)
def _named(stored: Same[Mapping[str, tuple[int, ...]]], num_layers: int | None) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {}
    experts: dict[str, int] = {}
    for stored_name, shape in stored.value.items():
        name = stored_name.replace(*_RENAMED)
        module, _, of_expert = name.partition(".experts.")
        if num_layers is not None and _layer(module) >= num_layers:
            continue
        number, _, rest = of_expert.partition(".")
        matrix, _, kind = rest.partition(".")
        if not number.isdigit() or kind != "weight":
            tensors[name] = shape
        elif (part := _PARTS.get(matrix)) is not None:
            fused = f"{module}.experts.{part}"
            experts[fused] = max(experts.get(fused, 0), int(number) + 1)
            rows = shape[0] * (2 if part == "gate_up_proj" else 1)
            tensors[fused] = (experts[fused], rows, *shape[1:])
    for embedding in ("model.embed_tokens.weight", "transformer.wte.weight"):
        if embedding in tensors:
            tensors.setdefault("lm_head.weight", tensors[embedding])
    return tensors


@lru_cache(maxsize=4096)
def _layer(module: str) -> int:
    """The number of the layer that it is in, kept for the hundreds of experts of one; -1 for none."""
    found = _LAYER.search(module)
    return int(found[1]) if found else -1


def is_linear(module: str) -> bool:
    """Whether a module of this name is a linear layer, an output layer too; experts and routers are none."""
    return _NO_LINEAR_LAYER.search(module) is None


def _is_inner_linear(module: str, shape: tuple[int, ...], vocabulary: Any) -> bool:
    """Whether a module with such a weight is a linear layer other than the output layer."""
    return len(shape) == 2 and vocabulary not in shape and is_linear(module)


def _asked(wanted: str | list[str] | None, vocabulary: Any) -> Callable[[str, tuple[int, ...]], bool]:
    """As PEFT reads it: a list of names or ends of names, or one regular expression for whole names."""
    if not isinstance(wanted, str):
        return lambda module, shape: _ends_in(module, wanted or ())
    if wanted == "all-linear":
        return lambda module, shape: _is_inner_linear(module, shape, vocabulary)
    try:
        pattern = re.compile(wanted)
    except re.error:
        return lambda module, shape: False
    return lambda module, shape: pattern.fullmatch(module) is not None


def _in_layers(options: AdapterConfig) -> Callable[[str], bool]:
    wanted, lists = options.peft_layers_to_transform, options.peft_layers_pattern
    if wanted is None:
        return lambda module: True
    patterns = [rf".*\b{name}\.(\d+)\." for name in lists or ()] or [_LAYER_NUMBER]

    def is_in(module: str) -> bool:
        found = next((match for pattern in patterns if (match := re.match(pattern, module))), None)
        return found is not None and int(found[1]) in wanted

    return is_in


def _of_whole_modules(stored: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], options: AdapterConfig) -> int:
    names = options.lora_modules_to_save or ()
    if not names:
        return 0
    tensors = _as_in_model(stored, config)
    return sum(math.prod(shape) for name, shape in tensors.items() if _ends_in(name.rpartition(".")[0], names))


def _ends_in(module: str, names: list[str] | tuple[str, ...]) -> bool:
    return any(module == name or module.endswith("." + name) for name in names)
