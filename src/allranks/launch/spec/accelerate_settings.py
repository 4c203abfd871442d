"""Settings that the user gave to Accelerate, in a file or as its options: places and numbers are taken from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from allranks.config import RunConfig
from allranks.config.foreign.accelerate import (
    DEEPSPEED,
    DEEPSPEED_REFUSED,
    NO_OF_YAML,
    as_written,
    contradictions,
    plain,
)
from allranks.config.names import nearest_key
from allranks.config.yaml_lines import read_yaml
from allranks.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from allranks.launch.spec.options import LaunchOptions

SECTIONS = {
    "fsdp_config": "fsdp_",
    "dynamo_config": "dynamo_",
    "fp8_config": "fp8_",
    "parallelism_config": "parallelism_config_",
    "deepspeed_config": "",
    "megatron_lm_config": "megatron_lm_",
    "mpirun_config": "mpirun_",
}
"""Sections of a file (accelerate 1.15) -> what its keys begin with as options."""

LAYER_CLASS = "fsdp_config.transformer_layer_cls_to_wrap"

PLACES = ("num_machines", "machine_rank", "main_process_ip", "main_process_port", "num_processes")
OTHERS = (
    *("compute_environment", "distributed_type", "mixed_precision", "use_cpu", "debug", "gpu_ids", "rdzv_backend"),
    *("same_network", "main_training_function", "enable_cpu_affinity", "downcast_bf16", "tpu_name", "tpu_zone"),
    *("tpu_use_cluster", "tpu_use_sudo", "command_file", "commands", "tpu_vm", "tpu_env", "dynamo_backend", "fp16"),
)

FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "compute_environment": (("LOCAL_MACHINE",), "expected LOCAL_MACHINE, also on every node of several"),
    "use_cpu": (
        (False,),
        "ranks take the GPUs that they see; write `use_cpu: false`, and CUDA_VISIBLE_DEVICES= to train on the CPU",
    ),
    "rdzv_backend": (("static",), "with Accelerate the nodes meet by static rendezvous; for c10d: --launcher torchrun"),
    "main_training_function": (("main",), "it is for notebooks; remove it"),
}
"""What these must say for `accelerate launch` to start the ranks of this node, and why."""

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "debug": (False,),
    "enable_cpu_affinity": (False,),
    "downcast_bf16": (False,),
    "fp16": (False,),
    **dict.fromkeys(("tpu_use_cluster", "tpu_use_sudo", "commands", "command_file", "tpu_vm", "tpu_env"), (False,)),
    **dict.fromkeys(("tpu_name", "tpu_zone"), (False,)),
}
"""What belongs to Accelerate's own engine or to TPUs: the engine of allranks would ignore it."""


@dataclass(frozen=True)
class AccelerateSettings:
    """`values` by option name, such as `fsdp_version`; `places` says where each was written. `file`: as it was read."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    file: dict[str, Any] = field(default_factory=dict)


def read_settings(path: str | None, options: Mapping[str, Any]) -> AccelerateSettings:
    """Settings of a file of `accelerate config`, and those given as options, which must not say otherwise.

    Raises ConfigError naming file, line and key.
    """
    settings = AccelerateSettings()
    problems = []
    if path is not None:
        data, lines = read_yaml(path)
        settings.file.update(data)
        for key, value in data.items():
            if key in SECTIONS:
                for name, inner in (value or {}).items():
                    prefix = SECTIONS[key]
                    option = name if name.startswith(prefix) else prefix + name
                    settings.values[option] = inner
                    settings.places[option] = f"{path}:{lines.get((key, name), 1)}: {key}.{name}"
            elif key in PLACES or key in OTHERS:
                settings.values[key] = value
                settings.places[key] = f"{path}:{lines.get((key,), 1)}: {key}"
            else:
                near = nearest_key(key, [*PLACES, *OTHERS, *SECTIONS])
                hint = f"did you mean {near}?" if near else "Accelerate has no such key"
                problems.append(f"{path}:{lines.get((key,), 1)}: {key}: {hint}")
    for name, value in options.items():
        flag = "--" + name
        if name in settings.values and plain(settings.values[name]) != plain(value):
            problems.append(f"{flag} {value} contradicts {settings.places[name]}: {as_written(settings.values[name])}")
        settings.values[name], settings.places[name] = value, flag
    _refuse(problems)
    return settings


def with_places(options: LaunchOptions, settings: AccelerateSettings) -> LaunchOptions:
    """The launch options with what the settings say about nodes and processes. Raises UsageError for contradictions."""
    said = {name: plain(settings.values[name]) for name in PLACES if settings.values.get(name) is not None}
    problems = _not_numbers(said, settings)
    problems += [
        f"{settings.places[name]}: {as_written(settings.values[name])}: {why}"
        for name, (allowed, why) in FIXED.items()
        if settings.values.get(name) is not None and plain(settings.values[name]) not in allowed
    ]
    _refuse(problems)
    machines = said.get("num_machines", 1)
    taken: dict[str, Any] = {"nnodes": str(machines) if "num_machines" in said else None}
    if machines > 1 or options.nnodes not in (None, "1"):
        taken["node_rank"] = said.get("machine_rank")
        taken["master_addr"] = said.get("main_process_ip")
        taken["master_port"] = said.get("main_process_port")
    # A number that is none is refused later.
    nodes = max(1, int(options.nnodes)) if options.nnodes and options.nnodes.isdigit() else machines
    total = said.get("num_processes", -1)
    if total != -1:
        taken["nproc_per_node"] = total / nodes
    problems += _different(taken, said, options, settings)
    _refuse(problems)
    if total != -1 and total % nodes:
        raise UsageError(
            f"{settings.places['num_processes']}: {total} processes cannot be divided among {nodes} machines: "
            "num_processes counts those of all machines, and Accelerate starts num_processes / num_machines on each; "
            "--launcher torchrun takes nodes with different numbers"
        )
    if "nproc_per_node" in taken:
        taken["nproc_per_node"] = total // nodes
    return replace(options, **{name: value for name, value in taken.items() if value is not None})


def _different(
    taken: Mapping[str, Any], said: Mapping[str, Any], options: LaunchOptions, settings: AccelerateSettings
) -> list[str]:
    """One line for each setting that says otherwise than an option of allranks."""
    names = {
        "nnodes": ("--nnodes", "num_machines"),
        "node_rank": ("--node-rank", "machine_rank"),
        "master_addr": ("--master-addr", "main_process_ip"),
        "master_port": ("--master-port", "main_process_port"),
        "nproc_per_node": ("--nproc-per-node", "num_processes"),
    }
    problems = []
    for name, value in taken.items():
        given = getattr(options, name)
        flag, setting = names[name]
        whole = (
            given * int(options.nnodes or said.get("num_machines", 1)) if name == "nproc_per_node" and given else None
        )
        if value is None or given is None or str(given) == str(value) or whole == said[setting]:
            continue
        total = f" (of all nodes: {value:g} on each)" if name == "nproc_per_node" else ""
        problems.append(
            f"{settings.places[setting]}: {said[setting]}{total} contradicts {flag} {given}: give one of them"
        )
    return problems


def refuse_contradictions(settings: AccelerateSettings, cfg: RunConfig) -> None:
    """Raises ConfigError with one line for each setting that says otherwise than the config, or would be ignored."""
    problems = [f"{settings.places[found.setting]}: {found.text}" for found in contradictions(settings.values, cfg)]
    for name, value in settings.values.items():
        said = False if name in NO_OF_YAML and value == "no" else plain(value)
        if name in WITHOUT_EFFECT and said not in (None, [], *WITHOUT_EFFECT[name]):
            problems.append(
                f"{settings.places[name]}: {as_written(value)} would have no effect on allranks' engine; remove it"
            )
    known = [*DEEPSPEED, *DEEPSPEED_REFUSED]
    problems += [
        f"{settings.places[name]}: unknown setting of DeepSpeed; Accelerate has {', '.join(known)}"
        for name in settings.file.get("deepspeed_config") or {}
        if name not in known and cfg.deepspeed.settings
    ]
    for section in ("deepspeed_config", "fp8_config", "megatron_lm_config", "mpirun_config"):
        if settings.file.get(section) and not (section == "deepspeed_config" and cfg.deepspeed.settings):
            problems.append(
                f"{section}: allranks' engine does not use it, and {cfg.source} does not ask for it; remove it"
            )
    _refuse(problems)


def layer_class(settings: AccelerateSettings, cfg: RunConfig) -> str | None:
    """The layers' class that only the settings name: the model tells whether it is right."""
    name = settings.values.get("fsdp_transformer_layer_cls_to_wrap")
    return str(name) if name and cfg.parallel.uses_fsdp else None


def _not_numbers(said: Mapping[str, Any], settings: AccelerateSettings) -> list[str]:
    """PLACES that should be numbers and are none."""
    lowest = {"num_machines": 1, "machine_rank": 0, "main_process_port": 0, "num_processes": -1}
    return [
        f"{settings.places[name]}: {as_written(said[name])}: expected a whole number from {low}"
        for name, low in lowest.items()
        if name in said
        and (type(said[name]) is not int or said[name] < low or (name, said[name]) == ("num_processes", 0))
    ]


def _refuse(problems: list[str]) -> None:
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError("the settings for Accelerate:\n  " + "\n  ".join(problems))
