"""`accelerate launch`, as a launcher: it starts torchrun's agent in itself. The engine stays ours.

Its file is always passed: without one it would take ~/.cache/huggingface/accelerate/default_config.yaml, which some
other project may have left there."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from allranks.config import RunConfig
from allranks.config.foreign.accelerate import wanted_settings
from allranks.errors import UsageError
from allranks.launch.node.starters.starting import Place, Starting
from allranks.launch.node.starters.torchrun import restart_variables
from allranks.launch.spec.options import Launch
from allranks.launch.spec.program import Program


def start_command(launch: Launch, program: Program, place: Place) -> Starting:
    """The command and this node's file. Raises UsageError for nodes with different numbers of processes."""
    if len(set(place.processes)) > 1:
        raise UsageError(
            f"the nodes have {', '.join(map(str, place.processes))} processes, and Accelerate starts as many on each "
            "(num_processes / num_machines): give all nodes the same --nproc-per-node, or use --launcher torchrun"
        )
    path = config_path(place)
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    if launch.restarts_left:
        words += ["--max_restarts", str(launch.restarts_left)]
    words += [*launch.launcher_args, *program.words(module="--module", executable="--no_python")]
    return Starting(words, {path: _text(launch, place)}, restart_variables(launch))


def config_path(place: Place) -> Path:
    """This node's file."""
    return place.run.launch / f"accelerate-node-{place.node}.yaml"


def _text(launch: Launch, place: Place) -> str:
    head = f"# Node {place.node} of a run of allranks; rewritten at every start.\n"
    return head + yaml.safe_dump(file_content(launch, place.cfg), sort_keys=False, allow_unicode=True, width=120)


def file_content(launch: Launch, cfg: RunConfig | None) -> dict[str, Any]:
    """A file as `accelerate config` would write it, for this node of this launch.

    Without a config, what the user gave to Accelerate is for the user's program, and kept.
    """
    content: dict[str, Any] = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU"}
    if cfg is None and launch.accelerate is not None:
        content |= launch.accelerate.file
        # Else it would start one process only.
        content["distributed_type"] = {"NO": "MULTI_GPU", False: "MULTI_GPU"}.get(
            content["distributed_type"], content["distributed_type"]
        )
    if cfg is not None:
        content |= _agreeing(cfg)
    several = launch.max_nodes > 1
    return content | {
        "machine_rank": launch.node_rank or 0,
        "main_process_ip": launch.address if several else None,
        # Alone it meets nobody: 0 takes any free port.
        "main_process_port": launch.port if several else 0,
        "num_machines": launch.max_nodes,
        "num_processes": launch.world_size,
        "same_network": True,
        "rdzv_backend": "static",
        "main_training_function": "main",
        "use_cpu": False,
        "gpu_ids": _gpu_ids(launch),
    }


def _agreeing(cfg: RunConfig) -> dict[str, Any]:
    settings = {name: wanted.value for name, wanted in wanted_settings(cfg).items() if wanted.value is not None}
    content: dict[str, Any] = {"distributed_type": settings["distributed_type"]}
    if "mixed_precision" in settings:
        content["mixed_precision"] = settings["mixed_precision"]
    if cfg.parallel.uses_fsdp:
        fsdp = {name: value for name, value in settings.items() if name.startswith("fsdp_")}
        fsdp |= {"fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_cpu_ram_efficient_loading": True}
        content["fsdp_config"] = fsdp
    if settings.get("dynamo_backend", "no") != "no":
        content["dynamo_config"] = {"dynamo_backend": settings["dynamo_backend"].upper()}
    return content


def _gpu_ids(launch: Launch, env: Mapping[str, str] = os.environ) -> str:
    """Which GPUs Accelerate shows to the ranks of this node, by overwriting CUDA_VISIBLE_DEVICES: those it was told."""
    told = str((launch.accelerate.values.get("gpu_ids") if launch.accelerate else None) or "all")
    if told == "all":
        return told
    assert launch.accelerate is not None
    place, ids = launch.accelerate.places["gpu_ids"], [part.strip() for part in told.split(",")]
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and [part.strip() for part in visible.split(",")] != ids:
        raise UsageError(f"{place}: {told} contradicts CUDA_VISIBLE_DEVICES={visible}, which it would overwrite")
    if len(ids) != launch.nproc_per_node:
        raise UsageError(f"{place}: {told} are {len(ids)} GPUs for {launch.nproc_per_node} process(es) on this node")
    return told
