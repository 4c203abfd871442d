"""In how many of a decoder's layers attention looks back no further than a window, by its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from allranks.plan.described import Described
from allranks.plan.families import Windows

_FIRST_WITHOUT = 28
"""`max_window_layers` of Qwen's models where it is not said."""
_WITHOUT_POSITIONS = 4
"""Of SmolLM3, each so many-th layer has no positions, where `no_rope_layers` does not say which."""


def windows_of(config: Mapping[str, Any], described: Described) -> dict[str, Any]:
    """`window` and `num_windowed_layers` of a ModelShape; nothing where all layers see everything before."""
    family = described.family
    kind: Windows = family.windows if described.is_known else "all"
    window = described.optional("sliding_window") if "sliding_window" in config else family.window
    if not kind or not window or not _is_on(described):
        return {}
    layers = range(described.num_layers)
    types = config.get("layer_types")
    if isinstance(types, list) and (kind != "all" or not described.is_known):
        number = types[: described.num_layers].count("sliding_attention")
    else:
        has_window = _of_kind(kind, described)
        number = sum(has_window(layer) for layer in layers)
    return {"window": window, "num_windowed_layers": number}


def _is_on(described: Described) -> bool:
    if described.family.says_windowed:
        return described.says("use_sliding_window")
    return described.is_known or described.config.get("use_sliding_window") is not False


def _of_kind(kind: Windows, described: Described) -> Callable[[int], bool]:
    last = described.optional("max_window_layers")
    border = _FIRST_WITHOUT if last is None else last
    match kind:
        case "alternate":
            return lambda layer: layer % 2 == 0
        case "but each sixth":
            each = described.optional("sliding_window_pattern") or 6
            return lambda layer: (layer + 1) % each != 0
        case "but each fourth":
            return lambda layer: (layer + 1) % 4 != 0
        case "from max_window_layers":
            return lambda layer: layer >= border
        case "alternate, below max_window_layers":
            return lambda layer: layer % 2 == 0 and layer < border
        case "without positions":
            has_positions = described.config.get("no_rope_layers")
            if isinstance(has_positions, list):
                return lambda layer: layer < len(has_positions) and not has_positions[layer]
            each = described.optional("no_rope_layer_interval") or _WITHOUT_POSITIONS
            return lambda layer: (layer + 1) % each == 0
    return lambda layer: True
