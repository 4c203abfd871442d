"""Whether the names that an adapter's keys give are of modules that the model has."""

from __future__ import annotations

from collections.abc import Collection

from allranks.config.sections.adapter import AdapterConfig
from allranks.errors import ConfigError

_KEYS = ("lora_target_modules", "lora_modules_to_save", "lora_target_parameters")


def refuse_unknown_names(tensors: Collection[str], asked: AdapterConfig, num_trained: int) -> None:
    """Raise ConfigError where training would refuse an adapter for its names (`model.adapter`).

    `tensors`: names of the model's; `num_trained`: elements that the adapter has there.
    """
    modules = {part for name in tensors for part in _within(name)}
    for key in _KEYS:
        wanted = getattr(asked, key) or ()
        names = tensors if key == "lora_target_parameters" else modules
        listed = [wanted] if isinstance(wanted, str) and names is tensors else wanted
        missing = [] if isinstance(listed, str) else [one for one in listed if not _is_there(one, names)]
        if missing:
            kind = "parameter" if names is tensors else "module"
            there = _last_parts(tensors) if names is modules else _of_experts(tensors)
            raise ConfigError(f"{key}: the model has no {kind} {', '.join(missing)}; it has {there}")
    if not num_trained:
        key = "lora_target_modules" if asked.peft_layers_to_transform is None else "peft_layers_to_transform"
        raise ConfigError(
            f"{key}: no layer of the model gets an adapter by {getattr(asked, key)!r}; set "
            f"lora_target_linear: true, or lora_target_modules to names from {_last_parts(tensors)}"
        )


def _within(tensor: str) -> list[str]:
    """The modules that a tensor is in."""
    parts = tensor.split(".")[:-1]
    return [".".join(parts[: number + 1]) for number in range(len(parts))]


def _is_there(name: str, names: Collection[str]) -> bool:
    return name in names or any(one.endswith(f".{name}") for one in names)


def _last_parts(tensors: Collection[str]) -> str:
    return ", ".join(dict.fromkeys(name.split(".")[-2] for name in tensors if name.endswith(".weight")))


def _of_experts(tensors: Collection[str]) -> str:
    found = dict.fromkeys(".".join(name.split(".")[-3:]) for name in tensors if not name.endswith((".weight", ".bias")))
    return ", ".join(found) or "none but those of modules"
