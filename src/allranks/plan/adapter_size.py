"""How many numbers an adapter will train at least, by the headers of its model's files. Needs no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from allranks.config.sections.adapter import AdapterConfig
from allranks.plan.stored_size import stored_shapes

# In files, experts lie one by one, and models put them together; routers are a class of their own in most models.
_NO_LINEAR_LAYER = re.compile(r"(^|\.)(experts\.|\w*emb\w*|wte$|wpe$|(\w+_)?gate$|(\w+_)?router(\.|$))")
_LAYER_NUMBER = r"(?:^|.*\.)[^.]*\.(\d+)\."


def num_adapter_elements(folder: Path, options: AdapterConfig) -> int | None:
    """Elements of the tensors that an adapter on the model in `folder` trains and saves; None where nothing is known.

    A lower bound: what the files do not tell for sure is left out, such as PEFT's own choice of modules, or experts
    that are stored one by one.
    """
    if options.lora_model_dir:
        shapes = stored_shapes(Path(options.lora_model_dir).expanduser(), "adapter_model")
        return sum(map(math.prod, shapes.values())) if shapes else None
    config, stored = model_config(folder), stored_shapes(folder)
    if stored is None or config is None or "vision_config" in config or "audio_config" in config:
        return None  # of such a model's files only the part for text is read
    return num_elements(stored, config, options) or None


def num_elements(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], options: AdapterConfig) -> int:
    """The same for a model with tensors of these shapes, whose config.json says `config`."""
    rank = options.lora_r or 1  # which the config has to give
    matrices = adapted_matrices(shapes, config, options).values()
    of_layers = sum(rank * (rows + columns) + (rows if options.peft_use_dora else 0) for rows, columns in matrices)
    return of_layers + _of_parameters(shapes, options, rank) + _of_whole_modules(shapes, options)


def adapted_matrices(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], options: AdapterConfig
) -> dict[str, tuple[int, int]]:
    """Module -> (rows, columns) of each matrix that gets a pair of its own."""
    vocabulary, is_asked, in_layers = config.get("vocab_size"), _asked(options.lora_target_modules), _in_layers(options)
    adapted = {}
    for module, (rows, columns) in _modules(shapes, config).items():
        linear = options.lora_target_linear and vocabulary not in (rows, columns) and is_linear(module)
        if (linear or is_asked(module)) and in_layers(module):
            adapted[module] = (rows, columns)
    return adapted


def model_config(folder: Path) -> dict[str, Any] | None:
    """What config.json of a model's folder says; None where it cannot be read."""
    try:
        read = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever reads the model says what is wrong with it
    return read if isinstance(read, dict) else None


def _modules(stored: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Module -> the shape of its matrix; without layers beyond the model's last, which predict further tokens."""
    num_layers = config.get("num_hidden_layers")
    modules: dict[str, tuple[int, ...]] = {}
    for name, shape in stored.items():
        layer = re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", name)
        is_extra = layer is not None and isinstance(num_layers, int) and int(layer[1]) >= num_layers
        if name.endswith(".weight") and len(shape) == 2 and not is_extra:
            modules[name.removesuffix(".weight")] = shape
    return modules


def is_linear(module: str) -> bool:
    """Whether a module of this name is a linear layer, an output layer too; experts and routers are none."""
    return _NO_LINEAR_LAYER.search(module) is None


def _asked(wanted: str | list[str] | None) -> Callable[[str], bool]:
    """As PEFT reads it: a list of names or ends of names, or one regular expression for whole names."""
    if not isinstance(wanted, str):
        return lambda module: _ends_in(module, wanted or ())
    if wanted == "all-linear":
        return is_linear
    try:
        pattern = re.compile(wanted)
    except re.error:
        return lambda module: False
    return lambda module: pattern.fullmatch(module) is not None


def _in_layers(options: AdapterConfig) -> Callable[[str], bool]:
    wanted, lists = options.peft_layers_to_transform, options.peft_layers_pattern
    if wanted is None:
        return lambda module: True
    patterns = [rf".*\b{name}\.(\d+)\." for name in lists or ()] or [_LAYER_NUMBER]

    def is_in(module: str) -> bool:
        found = next((match for pattern in patterns if (match := re.match(pattern, module))), None)
        return found is not None and int(found[1]) in wanted

    return is_in


def _of_parameters(stored: Mapping[str, tuple[int, ...]], options: AdapterConfig, rank: int) -> int:
    """A matrix of its own for each expert of a parameter that holds them all."""
    asked = options.lora_target_parameters
    names = [asked] if isinstance(asked, str) else asked or ()
    shapes = [shape for name, shape in stored.items() if len(shape) == 3 and _ends_in(name, names)]
    return sum(rank * shape[0] * (shape[1] + shape[2]) for shape in shapes)


def _of_whole_modules(stored: Mapping[str, tuple[int, ...]], options: AdapterConfig) -> int:
    names = options.lora_modules_to_save or ()
    return sum(math.prod(shape) for name, shape in stored.items() if _ends_in(name.rpartition(".")[0], names))


def _ends_in(module: str, names: list[str] | tuple[str, ...]) -> bool:
    return any(module == name or module.endswith("." + name) for name in names)
