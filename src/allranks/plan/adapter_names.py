"""Whether the names that an adapter's keys give are of modules that the model has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from allranks.config import RunConfig
from allranks.config.adapter_folder import adapter_folder
from allranks.config.sections.adapter import AdapterConfig
from allranks.config.unknown_names import NamesOfModel, missing_from
from allranks.errors import AllranksError, ConfigError
from allranks.plan.adapter_size import names_in_model
from allranks.plan.config_workload import Trained
from allranks.plan.families import FAMILIES
from allranks.plan.model_shape import shape_of
from allranks.plan.usual_targets import usual_targets
from allranks.plan.workload import ModelShape


def refuse_unknown_adapter(cfg: RunConfig, config: Mapping[str, Any]) -> None:
    """Raise ConfigError where training would refuse the config's adapter on the model whose config.json says `config`:
    before the nodes meet, in place of after they have loaded the model. `config` is as `overrides_of_model_config`
    make it.

    Says nothing where that cannot be known here: of a model that is still to be downloaded, brings its own code, or is
    of no family that is known.
    """
    if not cfg.adapter.adapter or adapter_folder(cfg.adapter) or not config or "auto_map" in config:
        return
    try:
        shape = shape_of(config)
    except AllranksError:
        _refuse_none(cfg.adapter, config, "")
    else:
        refuse_names(cfg.adapter, config, shape, Trained.of(cfg, config, shape))


def refuse_names(options: AdapterConfig, config: Mapping[str, Any], shape: ModelShape, trained: Trained) -> None:
    """The same of an adapter with these `options`, of which `trained` says what it is on a model of this `shape`."""
    if adapter_folder(options) or not options.adapter:
        return
    tensors, linear = names_in_model(shape.tensors, config)
    names = NamesOfModel.of(tensors, linear)
    _refuse_none(options, config, f" from {', '.join(names.linear)}")
    if shape.family in FAMILIES:  # of others the model itself may have other names
        _refuse_unknown(tensors, names, options, trained.num_elements)


def _refuse_none(options: AdapterConfig, config: Mapping[str, Any], there: str) -> None:
    """Of an adapter that is new, where PEFT has to know what it goes to, and does not."""
    named = (options.lora_target_linear, options.lora_target_modules, options.lora_target_parameters)
    if not (any(named) or usual_targets(config.get("model_type"))):
        raise ConfigError(
            f"lora_target_modules: PEFT has no usual modules for {config.get('model_type')}; set lora_target_linear: "
            f"true, or lora_target_modules to names{there}"
        )


def _refuse_unknown(tensors: Collection[str], names: NamesOfModel, asked: AdapterConfig, num_trained: int) -> None:
    """As `model.adapter` does. `tensors`: names of the model's; `num_trained`: elements that the adapter has there."""
    modules = {part for name in tensors for part in _within(name)}
    wanted = asked.lora_target_parameters or ()
    if missing := missing_from(tensors, [wanted] if isinstance(wanted, str) else wanted):
        raise names.no_parameter(missing)
    for key in ("lora_target_modules", "lora_modules_to_save"):
        if missing := missing_from(modules, getattr(asked, key)):
            raise names.no_module(key, missing)
    if not num_trained:
        key = "lora_target_modules" if asked.peft_layers_to_transform is None else "peft_layers_to_transform"
        by = repr(getattr(asked, key)) if getattr(asked, key) is not None else "what PEFT takes for such a model"
        raise ConfigError(
            f"{key}: no layer of the model gets an adapter by {by}; set lora_target_linear: true, or "
            f"lora_target_modules to names from {', '.join(names.linear)}"
        )


def _within(tensor: str) -> list[str]:
    """The modules that a tensor is in."""
    parts = tensor.split(".")[:-1]
    return [".".join(parts[: number + 1]) for number in range(len(parts))]
