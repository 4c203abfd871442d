"""The peaks of a model of many equal layers from those of two models of few.

On its way through equal layers a step does the same in each, so what is held when layer i runs is a sum of what is held
once, for each layer before it, and for each layer after it. At a place that is counted from the first or from the last
layer, every part is therefore an affine function of the number of layers, known from two numbers of them; and between
those places it is affine in i, so that the largest is at one of them.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from allranks.config import RunConfig
from allranks.model.layers import find_layers
from allranks.model.source import read_config
from allranks.plan.communication_memory import BROADCAST_BYTES
from allranks.trace.asked import Asked
from allranks.trace.recorder import Phase

FEW = (4, 6)
"""Layers of the two: what is gathered ahead reaches two layers from either end."""
_FROM_EITHER_END = FEW[0] // 2

Peaks = Mapping[Phase, Mapping[str, float]]


def peaks_of_many(few: Peaks, more: Peaks, num_layers: int) -> dict[Phase, Counter[str]]:
    """The peaks at the first and last places with `num_layers`, from those with `FEW[0]` and with `FEW[1]` layers.

    Places from the end have negative numbers.
    """
    first, second = (_by_place(peaks, number) for peaks, number in zip((few, more), FEW, strict=True))
    factor = (num_layers - FEW[0]) / (FEW[1] - FEW[0])
    found: dict[Phase, Counter[str]] = {}
    for place in first.keys() & second.keys():
        kinds = first[place].keys() | second[place].keys()
        found[place] = Counter()
        for kind in kinds:
            before, after = first[place].get(kind, 0), second[place].get(kind, 0)
            found[place][kind] = round(before + factor * (after - before))
    return found


def _by_place(peaks: Peaks, num_layers: int) -> dict[Phase, Mapping[str, float]]:
    placed: dict[Phase, Mapping[str, float]] = {}
    for (name, layer), parts in peaks.items():
        if name not in ("forward", "backward") or layer < _FROM_EITHER_END:
            placed[name, layer] = parts
        elif layer >= num_layers - _FROM_EITHER_END:
            placed[name, layer - num_layers] = parts
    return placed


SENT: Phase = ("sent", 0)
"""Replicas are given the weights of the first, in copies; only the weights are told of it."""


def largest(peaks: Peaks) -> Mapping[str, float]:
    """The parts of the phase that holds most."""
    phases = dict(peaks)
    if SENT in phases:
        weights = phases[SENT]["parameters"]
        phases[SENT] = {"parameters": weights, "communication": min(weights, BROADCAST_BYTES)}
    return max(phases.values(), key=lambda parts: sum(parts.values()))


_NUM_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def equal_layers(asked: Asked) -> int | None:
    """How many layers the model has, if each of them is the same in every respect; None if not."""
    key = next((key for key in _NUM_LAYERS if isinstance(asked.model.get(key), int)), None)
    named = ("unfrozen_parameters", "peft_layers_to_transform", "lora_model_dir")
    if key is None or any(asked.keys.get(name) for name in named):
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(asked.model), encoding="utf-8")
        cfg = RunConfig.from_resolved({**asked.keys, "base_model": folder})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                read_config(cfg, Path(folder)), trust_remote_code=cfg.model.trust_remote_code
            )
    layers = find_layers(model, cfg.parallel.fsdp_settings.transformer_layer_cls_to_wrap)
    is_equal = len(layers) == asked.model[key] and len({_described(layer) for layer in layers}) == 1
    return len(layers) if is_equal else None


def _described(layer: nn.Module) -> str:
    """All that a layer's modules are and hold, but its number."""
    told: list[Any] = []
    for name, module in layer.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str) and key != "layer_idx"
        }
        shapes = [(key, tuple(value.shape)) for key, value in module.named_parameters(recurse=False)]
        told.append((name, type(module).__name__, plain, shapes))
    return json.dumps(told, default=str)


def with_layers(model_config: Mapping[str, Any], num_layers: int, number: int) -> dict[str, Any]:
    """The config of the same model with `number` of its equal layers; lists with an entry a layer are cut, too."""
    cut = {
        key: value[:number] if isinstance(value, list) and len(value) == num_layers else value
        for key, value in model_config.items()
    }
    return {**cut, **{key: number for key in _NUM_LAYERS if model_config.get(key) == num_layers}}
