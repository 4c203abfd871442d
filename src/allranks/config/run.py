"""The whole config of a run: the sections, and where they came from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import yaml
from pydantic import ValidationError

from allranks.config.sections.adapter import AdapterConfig
from allranks.config.sections.checkpoint import CheckpointConfig
from allranks.config.sections.data import DataConfig
from allranks.config.sections.deepspeed import DeepspeedConfig
from allranks.config.sections.evaluation import EvaluationConfig
from allranks.config.sections.kernels import KernelConfig
from allranks.config.sections.launch import LaunchConfig
from allranks.config.sections.live import LiveConfig
from allranks.config.sections.model import ModelConfig
from allranks.config.sections.network import NetworkConfig
from allranks.config.sections.optimizer import OptimizerConfig
from allranks.config.sections.parallel import ParallelConfig
from allranks.config.sections.plan import PlanConfig
from allranks.config.sections.precision import PrecisionConfig
from allranks.config.sections.preflight import PreflightConfig
from allranks.config.sections.section import Section
from allranks.config.sections.tracking import TrackingConfig
from allranks.errors import ConfigError


@dataclass(frozen=True)
class RunConfig:
    """A resolved config. Each key of the YAML file is an attribute of exactly one section."""

    model: ModelConfig
    data: DataConfig
    adapter: AdapterConfig
    precision: PrecisionConfig
    parallel: ParallelConfig
    kernels: KernelConfig
    deepspeed: DeepspeedConfig
    network: NetworkConfig
    plan: PlanConfig
    preflight: PreflightConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig
    launch: LaunchConfig
    live: LiveConfig
    source: str
    """The file it was read from."""
    warnings: tuple[str, ...] = ()
    """What the user should be told: keys without effect, keys left out on request."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Where this config means something else than it would in Axolotl."""

    @property
    def remarks(self) -> list[str]:
        """Notes and warnings as lines for the terminal."""
        return [*(f"note: {note}" for note in self.notes), *(f"warning: {warning}" for warning in self.warnings)]

    @property
    def has_evaluation_data(self) -> bool:
        """Whether there is any: data sets of its own, or a part of the training data."""
        return bool(self.data.test_datasets) or self.data.val_set_size > 0

    @classmethod
    def from_resolved(cls, flat: Mapping[str, Any], *, source: str = "<dict>") -> Self:
        """The config that `flat` or `yaml` of a resolved one says, as it is: nothing filled in, renamed or warned of.

        Raises ConfigError for what no resolved config can hold: the file is damaged, or another version's.
        """
        by_section: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        try:
            for key, value in flat.items():
                by_section[SECTION_OF[key]][key] = value
            sections = {name: section.model_validate(by_section[name]) for name, section in SECTIONS.items()}
        except KeyError as error:
            key = error.args[0]
            raise ConfigError(f"{source}: {key} is no key of a resolved config; start the run again") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{source}: {where}: {first['msg']}; start the run again") from None
        return cls(**sections, source=source)  # type: ignore[arg-type]

    def flat(self) -> dict[str, Any]:
        """Every key that has a value, as plain JSON types. `from_resolved` of it gives the same config."""
        flat: dict[str, Any] = {}
        for name in SECTIONS:
            flat |= getattr(self, name).model_dump(mode="json", exclude_none=True)
        if self.optimizer.batch_size is not None:
            # Takes its place; the two exclude each other in a config.
            del flat["gradient_accumulation_steps"]
        return flat

    to_dict = flat

    def yaml(self) -> str:
        """`flat` as a YAML config, section by section."""
        flat = self.flat()
        parts = []
        for name, section in SECTIONS.items():
            keys = {key: flat[key] for key in section.model_fields if key in flat}
            if keys:
                parts.append(f"# {name}\n" + yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=120))
        return "\n".join(parts)

    def sha256(self) -> str:
        """Hex digest of the resolved config: equal on all nodes, or the run must not start."""
        return hashlib.sha256(json.dumps(self.flat(), sort_keys=True).encode()).hexdigest()


SECTIONS: dict[str, type[Section]] = {
    part.name: part.type for part in fields(RunConfig) if isinstance(part.type, type) and issubclass(part.type, Section)
}

SECTION_OF: dict[str, str] = {key: name for name, section in SECTIONS.items() for key in section.model_fields}
"""Flat key -> name of its section."""
