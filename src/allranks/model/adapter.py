"""LoRA through PEFT: where it goes, and the same first values on any number of ranks."""

import hashlib
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from allranks.config import RunConfig
from allranks.config.adapter_folder import adapter_folder
from allranks.config.sections.adapter import AdapterConfig
from allranks.config.unknown_names import NamesOfModel, missing_from
from allranks.errors import ConfigError
from allranks.model.peft_names import config_for_files, misread_modules, name_modules, names_as_they_are
from allranks.model.sharding import filling, full_shape, local_part
from allranks.model.weights import StoredTensor, read_header, read_rows


def add_adapter(model: PreTrainedModel, cfg: RunConfig) -> LoraConfig:
    """Wrap the target modules of `model` (on the meta device) in LoRA, in place, and freeze everything else.

    Names become PEFT's: `….q_proj.base_layer.weight`, `….q_proj.lora_A.default.weight`. Returns the config with which
    PEFT does the same.

    Raises:
        ConfigError: a target or a module to save that matches nothing; the names that there are get listed. One that
            PEFT could not load again.
    """
    options = cfg.adapter
    folder = adapter_folder(options)
    config = _continued(cfg, folder) if folder else _new(model, options)
    config.base_model_name_or_path = cfg.model.base_model
    config.task_type = "CAUSAL_LM"
    config.inference_mode = False
    # A file of PEFT's says what PEFT makes of it.
    is_ours = not folder or name_modules(config, model)
    _check_names(model, config)
    names = linear_names(model)
    try:
        with torch.device("meta"), names_as_they_are() if is_ours else nullcontext():
            inject_adapter_in_model(config, model)
    except ValueError as error:  # PEFT has no default targets for this model, or a pattern matches nothing
        raise ConfigError(
            f"{' '.join(str(error).split())[:300]}; set lora_target_linear: true, or lora_target_modules to names from "
            + ", ".join(names)
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))
    misread = misread_modules(model)
    if misread:
        _refuse_misread(options, type(model).__name__, {name.rpartition(".")[2] for name in misread}, names)
    return config_for_files(config, model, misread)


def start_adapter(model: nn.Module, cfg: RunConfig, seed: int) -> None:
    """Give the adapter its first values: from `lora_model_dir`, or random by (seed, name), so equal on any topology.

    `A` as PEFT draws it (uniform within 1/sqrt(in features), or normal with deviation 1/r for "gaussian"), `B` zero, so
    that the first step starts from the base model. DoRA's magnitudes are the norms of the loaded weights.
    """
    if cfg.adapter.lora_model_dir:
        _load_adapter(model, Path(cfg.adapter.lora_model_dir).expanduser())
        return
    how = cfg.adapter.peft_init_lora_weights
    for name, parameter in model.named_parameters():
        if ".lora_magnitude_vector." in name or ".lora_" not in name:
            continue
        _set(parameter, _first_values(name, parameter, how, seed))
    for module in model.modules():
        if isinstance(module, LoraLayer) and len(module.lora_magnitude_vector):
            _start_magnitude(module)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors by name, as they are checkpointed."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_trained(name: str) -> bool:
    """Whether a tensor of a model with an adapter is trained: the adapter's own, or of a module that is saved whole."""
    return ".lora_" in name or ".modules_to_save." in name


def saved_name(name: str) -> str:
    """The name of an adapter's tensor in PEFT's files: without the adapter's own name, under `base_model.model.`."""
    name = name.replace(".modules_to_save.default.", ".")
    name = name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    return "base_model.model." + name.replace(".default.", ".").removesuffix(".default")


def linear_names(model: nn.Module) -> list[str]:
    """The last name parts of all linear layers but the output layer, each once, in order."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    names = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not output
    )
    return list(dict.fromkeys(names))


def _new(model: PreTrainedModel, options: Any) -> LoraConfig:
    wanted = options.lora_target_modules
    targets: Any = wanted if isinstance(wanted, str) else list(wanted or [])
    if options.lora_target_linear:  # both, as in Axolotl: one name, or a list of them, is added to the linear layers
        targets = sorted({*([targets] if isinstance(targets, str) else targets), *linear_names(model)})
    asked = options.lora_target_parameters
    parameters = [asked] if isinstance(asked, str) else list(asked or []) or None
    return LoraConfig(
        r=options.lora_r or 8,  # PEFT's own defaults
        lora_alpha=options.lora_alpha or 8,
        lora_dropout=options.lora_dropout or 0.0,
        # With parameters alone to target, an empty list keeps PEFT from choosing modules too.
        target_modules=targets or ([] if parameters else None),
        target_parameters=parameters,
        modules_to_save=list(options.lora_modules_to_save or []) or None,
        fan_in_fan_out=bool(options.lora_fan_in_fan_out),
        use_dora=bool(options.peft_use_dora),
        use_rslora=bool(options.peft_use_rslora),
        init_lora_weights=True if options.peft_init_lora_weights is None else options.peft_init_lora_weights,
        layers_to_transform=options.peft_layers_to_transform,
        layers_pattern=options.peft_layers_pattern,
        bias="none",
    )


def _refuse_misread(options: AdapterConfig, model: str, misread: set[str], names: list[str]) -> None:
    """Raise ConfigError for what PEFT cannot do with an adapter that it is told by a weight. `names`: of all linear
    layers."""
    asked = {
        "peft_use_dora": options.peft_use_dora,
        f"load_in_{options.quantized_bits}bit": options.quantized_bits is not None,
    }
    for key in (key for key, is_asked in asked.items() if is_asked):
        others = [name for name in names if name not in misread]
        raise ConfigError(
            f"{key}: PEFT takes {', '.join(sorted(misread))} of {model} for its experts, and linear layers "
            f"of these names get no adapter that it could load with {key}; leave them out, with "
            f"lora_target_linear: false and lora_target_modules: [{', '.join(others)}], or leave out {key}"
        )


def _continued(cfg: RunConfig, folder: Path) -> LoraConfig:
    config = LoraConfig.from_pretrained(str(folder))
    refuse_named_module(config, folder)
    asked = {"lora_r": config.r, "lora_alpha": config.lora_alpha}
    for key, there in asked.items():
        given = getattr(cfg.adapter, key)
        if given is not None and given != there:
            raise ConfigError(f"{key}: {given}, but the adapter in lora_model_dir has {there}; leave {key} out")
    return config


def refuse_named_module(config: PeftConfig, folder: Path) -> None:
    """Raise ConfigError for an adapter config with which PEFT imports a Python module that the config names."""
    if getattr(config, "megatron_config", None):
        raise ConfigError(
            f"{folder}/adapter_config.json: megatron_config: with it PEFT imports the module that megatron_core names; "
            "such adapters are not supported"
        )


def _check_names(model: PreTrainedModel, config: LoraConfig) -> None:
    modules = [name for name, _ in model.named_modules() if name]
    tensors = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names = NamesOfModel.of(tensors, linear_names(model))

    if wrong := missing_from(tensors, config.target_parameters):
        raise names.no_parameter(wrong, type(model).__name__)
    for key, wanted in (
        ("lora_target_modules", config.target_modules),
        ("lora_modules_to_save", config.modules_to_save),
    ):
        if wrong := missing_from(modules, wanted):
            raise names.no_module(key, wrong, type(model).__name__)


def _first_values(name: str, parameter: Tensor, how: Any, seed: int) -> Tensor:
    """The whole tensor, on the CPU in float32. Embeddings begin with B random and A zero, as in PEFT."""
    shape = tuple(full_shape(parameter))
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    in_embedding = ".lora_embedding_" in name
    is_first = ".lora_A." in name or ".lora_embedding_A." in name
    if in_embedding:
        return torch.zeros(shape) if is_first else torch.randn(shape, generator=generator)
    if not is_first:
        if how is False:  # PEFT's "not a no-op" setting, meant for tests
            bound = 1 / math.sqrt(shape[-1])
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return torch.zeros(shape)
    if isinstance(how, str) and how.lower() == "gaussian":
        return torch.randn(shape, generator=generator) / shape[0]
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _start_magnitude(module: LoraLayer) -> None:
    """DoRA (https://arxiv.org/abs/2402.09353): a magnitude starts as the norm of an output's weights, for B is zero."""
    base = module.get_base_layer()
    if not isinstance(base, nn.Linear):
        raise ConfigError(f"peft_use_dora works on linear layers here, not on {type(base).__name__}")
    magnitude: Any = module.lora_magnitude_vector["default"].weight
    # One magnitude a row, and rows are what is sharded: this rank's rows give this rank's magnitudes.
    rows, first = local_part(base.weight)
    part, same_first = local_part(magnitude)
    assert (first, len(rows)) == (same_first, len(part))
    part.copy_(torch.linalg.vector_norm(rows.float(), dim=1))


def _set(parameter: Tensor, values: Tensor) -> None:
    with filling(parameter) as (part, first):
        part.copy_(values[first : first + len(part)])


def _load_adapter(model: nn.Module, folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ConfigError(f"lora_model_dir: {folder} holds no adapter_model.safetensors")
    stored: dict[str, StoredTensor] = read_header(file)
    wanted = {saved_name(name): parameter for name, parameter in adapter_tensors(model).items()}
    if stored.keys() != wanted.keys():
        lacking, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
        raise ConfigError(
            f"{file} does not fit the model: lacks {json.dumps(lacking[:8])}, has besides {json.dumps(surplus[:8])}"
        )
    for name, parameter in wanted.items():
        shape = full_shape(parameter)
        if stored[name].shape != tuple(shape):
            raise ConfigError(f"{file}: {name} is {list(stored[name].shape)}, the model has {list(shape)}")
        with filling(parameter) as (part, first):
            if part.numel():
                read_rows(stored[name], first, part)
