"""The lines of a config that make a run what a workload is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from allranks.plan.workload import Workload


def lines(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of `Workload.changes` what is to be written."""
    return {key: value for key, value in changes.items() if value is not None}


def replaced(changes: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """The keys of the user's file that have to go, or that the lines say otherwise."""
    return [key for key in changes if key in given]


def changed(
    flat: Mapping[str, Any], changes: Mapping[str, Any], deepspeed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A config with these changes, and those of the DeepSpeed settings in it."""
    made = {**{key: value for key, value in flat.items() if key not in changes}, **lines(changes)}
    if deepspeed and isinstance(made.get("deepspeed"), Mapping):
        made["deepspeed"] = {**made["deepspeed"], **deepspeed}
    return made


def deepspeed_changes(workload: Workload, changes: Mapping[str, Any]) -> dict[str, str]:
    """What the DeepSpeed settings that a config keeps have to say beside these changes, where they have numbers for the
    batch: `auto`."""
    of_batch = {"micro_batch_size", "gradient_accumulation_steps", "batch_size"}
    return dict.fromkeys(workload.deepspeed_batch, "auto") if of_batch & changes.keys() else {}


def as_yaml(keys: Mapping[str, Any]) -> str:
    """Lines to copy into a config."""
    return yaml.safe_dump(dict(keys), sort_keys=False, allow_unicode=True)


def inline(keys: Mapping[str, Any]) -> str:
    """The same within a sentence."""
    return ", ".join(yaml.safe_dump({key: value}, width=10**6).strip() for key, value in keys.items())
