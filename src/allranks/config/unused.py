"""Keys that have no effect beside the others, and are allowed to be there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allranks.config.data_rules import unused_template
from allranks.config.optimizers import WITH_FSDP
from allranks.config.run import RunConfig
from allranks.config.sections.launch import LaunchConfig

if TYPE_CHECKING:
    from allranks.config.rules import Given

ADAPTER_ONLY = [
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_linear",
    "lora_target_parameters",
    "lora_modules_to_save",
    "lora_model_dir",
    "lora_fan_in_fan_out",
    "peft_use_dora",
    "peft_use_rslora",
    "peft_init_lora_weights",
    "peft_layers_to_transform",
    "peft_layers_pattern",
    "loraplus_lr_ratio",
]

TRACKER_ONLY = {
    "wandb": ("wandb_entity", "wandb_name", "wandb_run_id"),
    "mlflow": ("mlflow_tracking_uri", "mlflow_run_name"),
    "trackio": ("trackio_run_name", "trackio_space_id"),
}
"""Tracker -> keys that say nothing unless it is switched on, by `use_…` or by naming a project."""
TRACKER_PROJECTS = {"wandb": "wandb_project", "mlflow": "mlflow_experiment_name", "trackio": "trackio_project_name"}

RAY_ONLY = [key for key in LaunchConfig.model_fields if key != "use_ray"]


def unused_keys(config: RunConfig, given: Given) -> list[str]:
    """One line for each key that is allowed to have no effect, because Axolotl's own examples are written so."""
    unused = []
    if config.adapter.adapter is None:
        # As in Axolotl: a config for an adapter trains the whole model once that line is gone.
        why = "has no effect without `adapter: lora`: the whole model is trained"
        unused += [f"{given.label((key,))}: {why}" for key in ADAPTER_ONLY if given.values.get(key)]
    if config.evaluation.evals_per_epoch and not config.has_evaluation_data:
        unused.append(f"{given.label(('evals_per_epoch',))}: has no effect: there is no evaluation data")
    unused += unused_template(config, given)
    if config.parallel.uses_fsdp and (instead := WITH_FSDP.get(config.optimizer.optimizer)):
        at = given.label(("optimizer",))
        unused.append(f"{at}: {config.optimizer.optimizer} takes no shards of FSDP; {instead[0]} runs: {instead[1]}")
    tracking = config.tracking
    for tracker, keys in TRACKER_ONLY.items():
        project = TRACKER_PROJECTS[tracker]
        if not getattr(tracking, f"use_{tracker}") and not getattr(tracking, project):
            why = f"has no effect without `use_{tracker}: true` or `{project}`"
            unused += [f"{given.label((key,))}: {why}" for key in keys if getattr(tracking, key)]
    if not config.launch.use_ray:
        launch = config.launch
        # Not "given": a resolved config, which the ranks read, gives every key.
        changed = [key for key in RAY_ONLY if getattr(launch, key) != type(launch).model_fields[key].default]
        unused += [f"{given.label((key,))}: has no effect without --use-ray" for key in changed]
    return unused
