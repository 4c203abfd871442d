"""One table of the variables and files by which somebody tells a node that its run has several nodes.

A node that does not see them trains alone and ends with exit code 0, and so does every other one. What says a node's
whole place is taken as options (`place`), all else names what to type instead (`signs`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from allranks.errors import UsageError


@dataclass(frozen=True)
class Setter:
    """Who sets variables of a node's place. `variables`: option of the launch -> names that mean it."""

    name: str
    variables: Mapping[str, tuple[str, ...]]


SETTERS = (
    Setter(
        "launch scripts (Qwen, ms-swift, LLaMA-Factory, Runpod)",
        {
            "nnodes": ("NNODES", "NUM_NODES"),
            "node_rank": ("NODE_RANK",),
            "master_addr": ("MASTER_ADDR",),
            "master_port": ("MASTER_PORT",),
            "nproc_per_node": ("NPROC_PER_NODE", "GPUS_PER_NODE"),
        },
    ),
    Setter(
        "torchrun's defaults (Kubeflow's PyTorchJob and TrainJob)",
        {
            option: (f"PET_{option.upper()}",)
            for option in (
                *("nnodes", "node_rank", "master_addr", "master_port", "nproc_per_node"),
                *("rdzv_backend", "rdzv_endpoint", "rdzv_id", "max_restarts"),
            )
        },
    ),
    Setter(
        "SkyPilot",
        {
            "nnodes": ("SKYPILOT_NUM_NODES",),
            "node_rank": ("SKYPILOT_NODE_RANK",),
            "master_addr": ("SKYPILOT_NODE_IPS",),  # one a line, the first is node 0's
            "nproc_per_node": ("SKYPILOT_NUM_GPUS_PER_NODE",),
        },
    ),
    Setter(
        "dstack",
        {
            "nnodes": ("DSTACK_NODES_NUM",),
            "node_rank": ("DSTACK_NODE_RANK",),
            "master_addr": ("DSTACK_MASTER_NODE_IP",),
            "nproc_per_node": ("DSTACK_GPUS_PER_NODE",),
        },
    ),
    Setter(
        "Volcengine",
        {
            "nnodes": ("MLP_WORKER_NUM",),
            "node_rank": ("MLP_ROLE_INDEX",),
            "master_addr": ("MLP_WORKER_0_HOST",),
            "master_port": ("MLP_WORKER_0_PORT",),
            "nproc_per_node": ("MLP_WORKER_GPU",),
        },
    ),
)

LOOPBACK = ("127.", "localhost", "::1", "[::1]")
"""How addresses begin that say nothing of other nodes."""

_SMALLEST = {"nnodes": 1, "node_rank": 0, "master_port": 1, "nproc_per_node": 1, "max_restarts": 0}
_NOT_SAID = {"nproc_per_node": ("auto", "gpu", "cpu", "0")}  # torchrun's words; platforms count 0 GPUs on a CPU


@dataclass(frozen=True)
class Told:
    """The value of an option, and the variable that says it: NAME=VALUE."""

    value: str
    variable: str


def place(env: Mapping[str, str]) -> dict[str, Told]:
    """Option of the launch -> what the environment says of it.

    Raises UsageError for what is no number, and for two variables that contradict each other.
    """
    found: dict[str, Told] = {}
    for setter in SETTERS:
        for option, names in setter.variables.items():
            for name in names:
                value = env.get(name, "").strip().partition("\n")[0]
                if not value or value in _NOT_SAID.get(option, ()):
                    continue
                _check_number(option, name, value)
                told = Told(value, f"{name}={value}")
                if option in found and found[option].value != value:
                    raise UsageError(
                        f"{found[option].variable} and {told.variable} are both set and contradict each other: unset "
                        f"one, or give --{option.replace('_', '-')}, which wins over both"
                    )
                found.setdefault(option, told)
    return found


def _check_number(option: str, name: str, value: str) -> None:
    smallest = _SMALLEST.get(option)
    if smallest is None:
        return
    numbers = value.split(":") if option == "nnodes" and name.startswith("PET_") else [value]
    if len(numbers) > 2 or not all(one.isascii() and one.isdigit() and int(one) >= smallest for one in numbers):
        raise UsageError(f"{name}={value!r}: expected a whole number of at least {smallest}")
    if option == "master_port" and int(value) > 65535:
        raise UsageError(f"{name}={value}: expected 1 to 65535, the same on all nodes")


@dataclass(frozen=True)
class Sign:
    """What says that there are several nodes, without this node's whole place: `text` names it and what it says."""

    text: str
    num_nodes: int
    instead: str
    """Options of `allranks train` that say the same."""


@dataclass(frozen=True)
class Scheduler:
    """Who else sets variables, how many nodes they mean (None: they say nothing), and the options to give instead."""

    name: str
    variable: str
    count: Callable[[str], int | None]
    instead: str
    unless: tuple[str, ...] = field(default=())
    """With one of these, allranks reads the scheduler's job by itself."""


def _number(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdigit() else None


def _words(value: str) -> int | None:
    return len(set(value.split())) or None


def _lines(value: str) -> int | None:
    """Different hosts in a file with a host a line, perhaps with more behind it."""
    try:
        lines = Path(value).read_text().splitlines()
    except (OSError, ValueError):
        return None
    hosts = {words[0] for line in lines if (words := line.split()) and not words[0].startswith("#")}
    return len(hosts) or None


def _json_list(value: str) -> int | None:
    try:
        hosts = json.loads(value)
    except ValueError:
        return None
    return len(hosts) if isinstance(hosts, list) else None


_OF_FILE = "--hosts \"$(awk '{{print $1}}' ${} | sort -u | paste -sd,)\""

SCHEDULERS = (
    Scheduler("Slurm", "SLURM_JOB_NUM_NODES", _number, "--hosts NAMES", ("SLURM_JOB_ID",)),
    Scheduler("Slurm", "SLURM_NNODES", _number, "--hosts NAMES", ("SLURM_JOB_ID",)),
    Scheduler("PBS", "PBS_NODEFILE", _lines, _OF_FILE.format("PBS_NODEFILE"), ("PBS_JOBID",)),
    Scheduler("LSF", "LSB_DJOB_HOSTFILE", _lines, _OF_FILE.format("LSB_DJOB_HOSTFILE")),
    Scheduler("LSF", "LSB_HOSTS", _words, "--hosts \"$(echo $LSB_HOSTS | tr ' ' '\\n' | sort -u | paste -sd,)\""),
    Scheduler("Grid Engine", "PE_HOSTFILE", _lines, _OF_FILE.format("PE_HOSTFILE")),
    Scheduler("OAR", "OAR_NODEFILE", _lines, _OF_FILE.format("OAR_NODEFILE")),
    Scheduler("Cobalt", "COBALT_NODEFILE", _lines, _OF_FILE.format("COBALT_NODEFILE")),
    Scheduler(
        "Flux",
        "FLUX_JOB_NNODES",
        _number,
        "--nnodes $FLUX_JOB_NNODES --node-rank $FLUX_TASK_RANK --master-addr HOST in one task a node",
    ),
    Scheduler("jsrun", "JSM_NAMESPACE_SIZE", _number, "--hosts NAMES"),
    Scheduler("MVAPICH", "MV2_COMM_WORLD_SIZE", _number, "--hosts NAMES"),
    Scheduler("Horovod", "HOROVOD_SIZE", _number, "--hosts NAMES"),
    Scheduler(
        "SageMaker",
        "SM_HOSTS",
        _json_list,
        "--nnodes N --node-rank R --master-addr HOST (N, R and the first HOST as SM_HOSTS and SM_CURRENT_HOST say)",
    ),
)

DEEPSPEED_HOSTFILE = Path("/job/hostfile")
"""What `deepspeed` reads when nobody names a host file (DeepSpeed 0.19)."""


def signs(env: Mapping[str, str]) -> list[Sign]:
    """What else says that there are several nodes. Jobs of Slurm and PBS around this process are not among it."""
    found = []
    for one in SCHEDULERS:
        value = env.get(one.variable)
        if not value or any(name in env for name in one.unless):
            continue
        number = one.count(value)
        if number is not None and number > 1:
            found.append(Sign(f"{one.variable}={_short(value)} ({one.name}) means {number} nodes", number, one.instead))
    number = _lines(str(DEEPSPEED_HOSTFILE))
    if number is not None and number > 1:
        text = f"{DEEPSPEED_HOSTFILE} (DeepSpeed's host file) names {number} nodes"
        found.append(Sign(text, number, f"--hostfile {DEEPSPEED_HOSTFILE}"))
    return found


def _short(value: str) -> str:
    value = re.sub(r"\s+", " ", value)
    return value if len(value) <= 60 else value[:57] + "…"
