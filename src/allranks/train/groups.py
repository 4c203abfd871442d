"""Which trained parameter learns at which rate, and which of them decay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.model.sharding import full_shape


@dataclass(frozen=True)
class Trained:
    """A trained parameter: `is_matrix` of a hidden layer, which is neither an embedding nor the output layer."""

    name: str
    parameter: nn.Parameter
    is_matrix: bool


def trained_parameters(module: nn.Module) -> list[Trained]:
    """Every parameter of `module` that requires a gradient, once, by its name in the checkpoint.

    Raises ConfigError if there is none.
    """
    model = module.module if isinstance(module, DistributedDataParallel) else module
    ends = {id(parameter) for end in _ends(model) for parameter in end.parameters()}
    found = [
        Trained(name, parameter, len(full_shape(parameter)) == 2 and id(parameter) not in ends)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    if not found:
        raise ConfigError("nothing to train: no parameter of the model requires a gradient; check the adapter's keys")
    return found


def parameter_groups(cfg: RunConfig, module: nn.Module) -> list[dict[str, Any]]:
    """The optimizer's groups: one for each learning rate and weight decay, that of `learning_rate` first.

    Matrices decay; biases, norms and other vectors do not, as in transformers' Trainer.
    Raises ConfigError for a key that names no trained parameter.
    """
    settings = cfg.optimizer
    rates = _Rates(cfg, module)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for trained in trained_parameters(module):
        decay = settings.weight_decay if len(full_shape(trained.parameter)) >= 2 else 0.0
        groups.setdefault((rates.of(trained), decay), []).append(trained.parameter)
    rates.refuse_unused()
    first = sorted(groups, key=lambda key: key[0] != settings.learning_rate)
    return [{"params": groups[key], "lr": key[0], "weight_decay": key[1]} for key in first]


class _Rates:
    """The keys that give some parameters a rate of their own; the first that fits counts."""

    def __init__(self, cfg: RunConfig, module: nn.Module) -> None:
        self.optimizer, self.adapter = cfg.optimizer, cfg.adapter
        self._ends = {id(parameter) for end in _ends(module) for parameter in end.parameters()}
        self._unused = {f"lr_groups: {group.name}" for group in self.optimizer.lr_groups or []}
        self._unused |= {key for key in ("embedding_lr", "embedding_lr_scale") if getattr(self.optimizer, key)}
        self._unused |= {"loraplus_lr_ratio"} if self.adapter.loraplus_lr_ratio else set()

    def of(self, trained: Trained) -> float:
        base = self.optimizer.learning_rate
        for group in self.optimizer.lr_groups or []:
            if any(part in trained.name for part in group.modules):
                self._unused.discard(f"lr_groups: {group.name}")
                return group.lr
        in_lora = ".lora_" in trained.name
        if id(trained.parameter) in self._ends and not in_lora:
            if self.optimizer.embedding_lr_scale:
                self._unused.discard("embedding_lr_scale")
                return base * self.optimizer.embedding_lr_scale
            if self.optimizer.embedding_lr:
                self._unused.discard("embedding_lr")
                return self.optimizer.embedding_lr
        if in_lora and self.adapter.loraplus_lr_ratio:
            if ".lora_embedding_" in trained.name:
                return self.adapter.loraplus_lr_embedding
            if ".lora_B." in trained.name:
                self._unused.discard("loraplus_lr_ratio")
                return base * self.adapter.loraplus_lr_ratio
        return base

    def refuse_unused(self) -> None:
        if self._unused:
            raise ConfigError(
                f"{', '.join(sorted(self._unused))}: no trained parameter is meant by this. lr_groups looks for its "
                "`modules` in the names of parameters, embedding_lr takes a trained embedding and output layer"
            )


def _ends(module: nn.Module) -> Iterator[nn.Module]:
    """The embedding and the output layer, of a model of transformers."""
    model = module.module if isinstance(module, DistributedDataParallel) else module
    for find in ("get_input_embeddings", "get_output_embeddings"):
        end = getattr(model, find, lambda: None)()
        if end is not None:
            yield end
