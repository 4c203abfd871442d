"""Names of modules that PEFT takes for others, and how a file says the same to it.

Experts were linear layers one by one before transformers 5. So that an adapter of that time finds its place, PEFT reads
`gate_proj`, `up_proj` and `down_proj` of such a model as its fused experts
(https://github.com/huggingface/peft/blob/v0.21.0/src/peft/utils/transformers_weight_conversion.py,
`_convert_peft_config_moe`), and as those alone: linear layers of the same names in dense layers and shared experts,
as DeepSeek has them, get no adapter then. What a config asks for here is the linear layers; experts are asked for by
`lora_target_parameters`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils import transformers_weight_conversion
from torch import nn
from transformers import PreTrainedModel

_WEIGHT = ".weight"


@contextmanager
def names_as_they_are() -> Iterator[None]:
    """Let PEFT put adapters on the modules that have the names which it is given."""
    convert = transformers_weight_conversion.convert_peft_config_for_transformers
    transformers_weight_conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        transformers_weight_conversion.convert_peft_config_for_transformers = convert


def misread_modules(model: PreTrainedModel) -> list[str]:
    """The adapted linear layers of `model` that PEFT, told their names, would not find."""
    adapted = _adapted_modules(model)
    misread = {last for last in {name.rpartition(".")[2] for name in adapted} if _is_misread(last, model)}
    return [name for name in adapted if name.rpartition(".")[2] in misread]


def _adapted_modules(model: PreTrainedModel) -> list[str]:
    """Those whose parameters are not adapted as they are."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper)
    ]


def config_for_files(config: LoraConfig, model: PreTrainedModel, misread: list[str]) -> LoraConfig:
    """What PEFT has to read to put the same adapter into the same places: `misread` ones are told by their weights.

    An adapter on a weight computes the same from tensors of the same names and shapes; PEFT has no dropout there, which
    is of account in training alone.
    """
    if not misread:
        return config
    told = copy.deepcopy(config)
    names = {name.rpartition(".")[2] for name in misread}
    if isinstance(config.target_modules, str):
        told.target_modules = [name for name in _adapted_modules(model) if name not in misread]
    else:
        told.target_modules = [name for name in config.target_modules or () if name.rpartition(".")[2] not in names]
    told.target_parameters = sorted({*(config.target_parameters or ()), *(name + _WEIGHT for name in misread)})
    told.lora_dropout = 0.0
    return told


def name_modules(config: LoraConfig, model: PreTrainedModel) -> bool:
    """Undo `config_for_files` in `config`, if it was done; whether it was."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    weights = [name for name in config.target_parameters or () if name.removesuffix(_WEIGHT) in linear]
    if not weights:
        return False
    assert not isinstance(config.target_modules, str)
    config.target_modules = [*(config.target_modules or ()), *(name.removesuffix(_WEIGHT) for name in weights)]
    config.target_parameters = [name for name in config.target_parameters or () if name not in weights] or None
    return True


def _is_misread(name: str, model: PreTrainedModel) -> bool:
    config = LoraConfig(target_modules=[name])
    try:
        transformers_weight_conversion.convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of two names for one tensor
        return True
    return name not in (config.target_modules or ())
