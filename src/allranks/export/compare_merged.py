"""What a model with an adapter computes with, tensor by tensor, out of the base model's files and the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from allranks.export.checkpoint import Checkpoint
from allranks.export.compare import Closeness, Folder, conclude_merged, written_folder
from allranks.export.full import empty_model
from allranks.model.loading import base_name, plan_loading
from allranks.model.quantized.mxfp4 import gather_blocks
from allranks.model.vocabulary import vocabulary_tensors
from allranks.model.weights import find_weights


def base_tensors(checkpoint: Checkpoint, base: Path) -> Callable[[str], Tensor | None]:
    """The tensors of the base model in the folder `base`, by their names in the model, each read when asked for."""
    plain = empty_model(checkpoint)
    return Folder(plan_loading(plain, gather_blocks(find_weights(base)), vocabulary_tensors(plain))).read


def compare_merged(
    checkpoint: Checkpoint,
    before: Callable[[str], Tensor | None],
    folder: Path,
    dtype: torch.dtype,
    report: Callable[[str], None],
) -> None:
    """Compare a merged model with the base model's tensors, which `before` gives, and the checkpoint's adapter.
    Reports one line.

    Raises:
        CheckpointError: a written tensor is not what training computed with.
    """
    written, model = written_folder(checkpoint, folder, dtype)
    adapted = empty_model(checkpoint)
    with torch.device("meta"):
        inject_adapter_in_model(PeftConfig.from_pretrained(str(checkpoint.hf)), adapted)
    layers, whole = _adapted(adapted), _saved_whole(adapted, checkpoint)
    close, different, num = Closeness(dtype), [], 0
    for name in model.state_dict():
        there = written.read(name)
        start: Tensor | None = None
        if name in whole:
            wanted = checkpoint.read([whole[name]])[whole[name]]
        else:
            of_base = before(name)
            if of_base is None:  # made by the model itself, like some buffers
                continue
            wanted = of_base
            if name in layers:
                start = wanted = of_base.float()
                for prefix, layer in layers[name]:
                    wanted = _with_adapter(checkpoint, prefix, layer, wanted)
        num += 1
        if not close.is_close(there, start, wanted):
            different.append(name)
    conclude_merged(checkpoint, different, num, close, report)


def _adapted(model: PreTrainedModel) -> dict[str, list[tuple[str, Any]]]:
    """The LoRA layers by the name of the tensor that each changes, innermost first."""
    layers: dict[str, list[tuple[str, Any]]] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, LoraLayer):
            parameter = getattr(module, "parameter_name", "weight")
            layers.setdefault(base_name(f"{prefix}.base_layer.{parameter}"), []).insert(0, (prefix, module))
    return layers


def _saved_whole(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """Names of the tensors that the adapter brings whole -> their names in the checkpoint."""
    return {
        base_name(f"{prefix}.original_module.{name}"): f"{prefix}.modules_to_save.default.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
        for name, _ in module.modules_to_save["default"].named_parameters()
    }


def _with_adapter(checkpoint: Checkpoint, prefix: str, layer: Any, weight: Tensor) -> Tensor:
    """`weight` as the layer computes with it, in float32."""
    names = [name for name in checkpoint.tensors if name.startswith(f"{prefix}.lora_")]
    for name, tensor in checkpoint.read(names).items():
        place: Any = layer
        *path, last = name.removeprefix(f"{prefix}.").split(".")
        for part in path:
            place = place[part] if isinstance(place, (nn.ModuleDict, nn.ParameterDict)) else getattr(place, part)
        value = nn.Parameter(tensor.float(), requires_grad=False)
        if isinstance(place, nn.ParameterDict):
            place[last] = value
        else:
            setattr(place, last, value)
    if (parameter := getattr(layer, "parameter_name", None)) is not None:
        # PEFT asks the parameter for its device and dtype.
        setattr(layer.get_base_layer(), parameter, nn.Parameter(torch.empty(0), requires_grad=False))
    with torch.no_grad():
        weight = weight + layer.get_delta_weight("default").float()
        if layer.use_dora.get("default"):
            # DoRA (https://arxiv.org/abs/2402.09353): each output's weights have the trained length.
            weight = weight * (layer.lora_magnitude_vector["default"].weight / weight.norm(dim=1))[:, None]
    return weight
