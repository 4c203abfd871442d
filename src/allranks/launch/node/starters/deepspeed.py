"""DeepSpeed's launcher, started on each node by itself (`--no_ssh`), with a host file that is made for the run."""

import os
import sys
from collections.abc import Mapping

from allranks.cluster.gpus import count_gpus
from allranks.cluster.loopback import free_port
from allranks.errors import UsageError
from allranks.launch.node.starters.starting import Place, Starting
from allranks.launch.spec.options import Launch
from allranks.launch.spec.program import Program


def start_command(launch: Launch, program: Program, place: Place, env: Mapping[str, str] = os.environ) -> Starting:
    """The command and the host file. Raises UsageError where the launcher would choose other GPUs than asked for."""
    path = place.run.launch / f"deepspeed-hosts-{place.node}.txt"
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(path)]
    words += ["--no_ssh", "--node_rank", str(launch.node_rank or 0)]
    words += ["--master_addr", launch.address, "--master_port", str(launch.port or free_port())]
    gpus = _gpus(launch, env)
    if gpus is not None:
        words += ["--include", _include(gpus, launch.node_rank or 0, place.processes)]
    words += ["--no_local_rank", *launch.launcher_args, *program.words(module="--module", executable="--no_python")]
    return Starting(words, {path: _hosts(place, gpus, launch.node_rank or 0)})


def _hosts(place: Place, gpus: list[int] | None, node_rank: int) -> str:
    """Names are only told apart, as nobody is reached by them; slots are processes."""
    slots = list(place.processes)
    if gpus is not None:
        slots[node_rank] = max(gpus) + 1  # as many as --include may choose from
    lines = [
        f"# Node {place.node} of a run of allranks; rewritten at every start. No host is reached by its name here."
    ]
    return "\n".join(lines + [f"node-{node} slots={count}" for node, count in enumerate(slots)]) + "\n"


def _include(gpus: list[int], node_rank: int, processes: tuple[int, ...]) -> str:
    """Of the other nodes only the number counts."""
    chosen = [gpus if node == node_rank else list(range(count)) for node, count in enumerate(processes)]
    return "@".join(f"node-{node}:{','.join(map(str, numbers))}" for node, numbers in enumerate(chosen))


def _gpus(launch: Launch, env: Mapping[str, str]) -> list[int] | None:
    """The GPUs that the user chose for this node; None for the first ones.

    The launcher overwrites CUDA_VISIBLE_DEVICES with the numbers of its slots.
    """
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    words = [word.strip() for word in visible.split(",") if word.strip()]
    if not all(word.isdigit() for word in words) or (not words and count_gpus({}) > 0):
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES={visible!r}: DeepSpeed's launcher overwrites it with the numbers of its slots; name "
            "GPUs by number, or use --launcher torchrun"
        )
    return [int(word) for word in words[: launch.nproc_per_node]] or None
