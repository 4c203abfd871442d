"""What is said of names in an adapter's keys that the model does not have: the same before the nodes meet, where names
are told from its config.json, and by ranks, which have the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from allranks.errors import ConfigError


@dataclass(frozen=True)
class NamesOfModel:
    """`linear`: of its linear layers but the output layer; `modules`: of all that have a weight; last parts, each once.
    `parameters`: of those that are no module's weight or bias, such as all experts' of a layer, their last three parts.
    """

    linear: Sequence[str]
    modules: Sequence[str]
    parameters: Sequence[str]

    @classmethod
    def of(cls, tensors: Iterable[str], linear: Iterable[str]) -> NamesOfModel:
        """By the names of all of its tensors, a shared output layer's too, and of its `linear` layers."""
        whole = list(tensors)
        bare = (name for name in whole if not name.endswith((".weight", ".bias")))
        return cls(
            linear=_last_parts(linear),
            modules=_last_parts(name.removesuffix(".weight") for name in whole if name.endswith(".weight")),
            parameters=list(dict.fromkeys(".".join(name.split(".")[-3:]) for name in bare)),
        )

    def no_module(self, key: str, missing: Collection[str], model: str = "the model") -> ConfigError:
        """Of `lora_target_modules`, or `lora_modules_to_save`, which any module can be one of."""
        is_whole = key == "lora_modules_to_save"
        experts = [] if is_whole else [name for name in self.parameters if ".experts." in f".{name}"]
        hint = f"; for its experts: lora_target_parameters: [{', '.join(experts)}]" if experts else ""
        there = ", ".join(self.modules if is_whole else self.linear)
        return ConfigError(f"{key}: {model} has no module {', '.join(sorted(missing))}; it has {there}{hint}")

    def no_parameter(self, missing: Collection[str], model: str = "the model") -> ConfigError:
        there = ", ".join(self.parameters) or "none but those of modules"
        return ConfigError(
            f"lora_target_parameters: {model} has no parameter {', '.join(sorted(missing))}; it has {there}"
        )


def missing_from(names: Collection[str], wanted: Collection[str] | str | None) -> list[str]:
    """Which of a list of names, or of ends of names, none of `names` has; a single string is a pattern, and no name."""
    if wanted is None or isinstance(wanted, str):
        return []
    return [part for part in wanted if part not in names and not any(one.endswith(f".{part}") for one in names)]


def _last_parts(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))
