"""What the environment of this node says about its run, as options: or each of several nodes would train alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from allranks.cluster.allocation import Allocation, find_allocation
from allranks.cluster.alone import warning_over_ssh
from allranks.cluster.identity import identify
from allranks.cluster.node_variables import LOOPBACK, Told, place, signs
from allranks.config.foreign.accelerate_default import default_file, default_machines
from allranks.errors import UsageError
from allranks.launch.describe import ONE_VOICE
from allranks.launch.spec.launcher_options import TORCHRUN
from allranks.observe import say

if TYPE_CHECKING:
    from allranks.launch.spec.options import LaunchOptions
    from allranks.launch.spec.where import NodeOptions

_INTEGERS = ("node_rank", "nproc_per_node", "master_port", "max_restarts")
# Options of these say where nodes meet; one that is given stands for all of them.
_ENDPOINT = ("rdzv_endpoint", "master_addr", "master_port")
_WARNING = "warning: "
_ALONE = "--nnodes 1 trains on this node alone"


def with_environment(
    options: LaunchOptions, nodes: NodeOptions, env: Mapping[str, str] = os.environ
) -> tuple[LaunchOptions, list[str]]:
    """The launch options, with those that variables of this node or Accelerate's own file say and nobody gave; and one
    line for each thing that was taken, or was not.

    What is given on the command line wins. Raises UsageError where the environment says that there are several nodes,
    and not which of them this one is.
    """
    if ONE_VOICE in env:
        return options, []  # the node that started this one has said all of it
    told: Mapping[str, Told] = place(env)
    given = {name for name in told if getattr(options, name) not in (None, _default(name))}
    notes = [
        f"{told[name].variable} is not used: {_flag(name)} {getattr(options, name)} was given"
        for name in sorted(given)
        if str(getattr(options, name)) != told[name].value
    ]
    told = {name: one for name, one in told.items() if name not in given}
    allocation = None
    if nodes.hosts is not None or nodes.hostfile is not None:
        taken: Mapping[str, Told] = _of_any_node(told)
        if "nnodes" in told or "node_rank" in told:
            notes.append(f"{_shown(told, ('nnodes', 'node_rank', 'master_addr'))} not used: the nodes are named")
        found = _with(options, taken)
    else:
        allocation = _allocation(options, told, env)
        taken = _taken(options, told, allocation, env, notes)
        found = _with(options, taken)
        if allocation is None and found.nnodes is None:
            _refuse_signs(env)
        found = _with_accelerates_file(found, allocation, env, notes)
        if allocation is None and found.nnodes is None and found.accelerate_config is None:
            notes += [f"{_WARNING}{warning}"] if (warning := warning_over_ssh(env)) else []
    found = _with_torchruns_options(found, env, notes)
    if taken:
        alone = f"; {_ALONE}" if "nnodes" in taken and found.nnodes != "1" else ""
        notes.insert(0, f"taken from the environment: {_shown(taken, taken, flags=True)}{alone}")
    return found, notes


def tell(notes: Iterable[str]) -> None:
    for note in notes:
        say(note if note.startswith(_WARNING) else f"note: {note}", file=sys.stderr)


def _of_any_node(told: Mapping[str, Told]) -> Mapping[str, Told]:
    return {name: one for name, one in told.items() if name == "nproc_per_node"}


def _allocation(options: LaunchOptions, told: Mapping[str, Told], env: Mapping[str, str]) -> Allocation | None:
    """The job whose nodes all start from this process; None where this node is alone, or one that is started by hand.

    Not looked for without need: on other nodes than the first PBS_NODEFILE cannot be read.
    """
    if options.nnodes == "1" or options.node_rank is not None or options.rdzv_endpoint is not None:
        return None
    if options.nnodes is None and options.master_addr is not None:
        return None
    is_task = "SLURM_STEP_ID" in env or env.get("PBS_TASKNUM", "1") != "1"
    if "node_rank" in told and ("nnodes" in told or options.nnodes is not None):
        # In a batch script this would be the first node, and nobody would start the others.
        if is_task or told["node_rank"].value != "0":
            return None
        allocation = find_allocation(env)
        return allocation if allocation is not None and len(allocation.hosts) > 1 else None
    return find_allocation(env)


def _taken(
    options: LaunchOptions,
    told: Mapping[str, Told],
    allocation: Allocation | None,
    env: Mapping[str, str],
    notes: list[str],
) -> Mapping[str, Told]:
    """What is taken where no nodes were named."""
    if options.nnodes == "1":
        return _of_any_node(told)
    if allocation is not None:
        return _of_allocation(allocation, told, notes)
    if options.rdzv_endpoint is not None:
        told = {name: one for name, one in told.items() if name not in _ENDPOINT}
    elif options.master_addr is not None or options.master_port is not None:
        told = {name: one for name, one in told.items() if name != "rdzv_endpoint"}
    nnodes = told["nnodes"].value if "nnodes" in told else options.nnodes
    if nnodes is None or _most(nnodes) == 1:
        _refuse_half_a_place(options, told, env)
        return {name: one for name, one in told.items() if name in ("nnodes", "nproc_per_node", "max_restarts")}
    _refuse_incomplete(options, told, nnodes, env)
    if "rdzv_endpoint" in told:
        told = {name: one for name, one in told.items() if name not in ("master_addr", "master_port")}
    return told


def _most(nnodes: str) -> int:
    """Of `2` or `1:3`; what a user has mistyped is refused later."""
    text = nnodes.rpartition(":")[2]
    return int(text) if text.isdecimal() else 1


def _of_allocation(allocation: Allocation, told: Mapping[str, Told], notes: list[str]) -> dict[str, Told]:
    """In a batch script, SLURM_NODEID is 0 whatever the node: what is told of this node only repeats the job."""
    num_hosts = len(allocation.hosts)
    nnodes = told.get("nnodes")
    if nnodes is not None and nnodes.value != str(num_hosts):
        raise UsageError(
            f"{nnodes.variable}, but {allocation} has {num_hosts} node(s): unset it to train on all of them, or give "
            f"--nnodes {nnodes.value}"
        )
    if "node_rank" in told and told["node_rank"].value != "0":
        raise UsageError(
            f"{told['node_rank'].variable} is set and NNODES is not: unset it to start on all nodes of {allocation} "
            "from here, or set NNODES too to start each node by hand"
        )
    repeated = {name: one for name, one in told.items() if name in ("nnodes", "node_rank", "master_addr")}
    if repeated and num_hosts > 1:
        notes.append(
            f"{_shown(repeated, repeated)} need not be set: this starts on all {num_hosts} nodes of {allocation}"
        )
    # A single node needs no port to meet at.
    return {name: told[name] for name in ("master_port", "nproc_per_node")[num_hosts == 1 :] if name in told}


def _refuse_half_a_place(options: LaunchOptions, told: Mapping[str, Told], env: Mapping[str, str]) -> None:
    half = [name for name in ("node_rank", "rdzv_endpoint") if name in told]
    # A launcher sets MASTER_ADDR for its ranks, and what it started is told later.
    by_launcher = "RANK" in env or "WORLD_SIZE" in env or not identify(env).alone
    if "master_addr" in told and not by_launcher and not told["master_addr"].value.startswith(LOOPBACK):
        half.append("master_addr")
    if "nnodes" not in told and options.nnodes is None and half:
        raise UsageError(
            f"{_shown(told, half)} is set and NNODES is not: each node would train alone; set NNODES to the number of "
            f"nodes, the same on all, or give --nnodes N ({_ALONE})"
        )
    if "nnodes" in told and told.get("node_rank", Told("0", "")).value != "0":
        raise UsageError(
            f"{told['node_rank'].variable} with {told['nnodes'].variable}: a single node has rank 0; {_ALONE}"
        )


def _refuse_incomplete(options: LaunchOptions, told: Mapping[str, Told], nnodes: str, env: Mapping[str, str]) -> None:
    """Raises UsageError where the options and the variables together do not say this node's place."""

    def is_said(name: str) -> bool:
        return name in told or getattr(options, name) is not None

    needed = {
        "node_rank": "NODE_RANK (0 on the first node, then 1, 2, …)",
        "master_addr": "MASTER_ADDR (an address of node 0 that the others reach)",
    }
    backend = told["rdzv_backend"].value if "rdzv_backend" in told else options.rdzv_backend
    if is_said("rdzv_endpoint"):
        needed.pop("master_addr")
    if backend == "c10d" or (is_said("rdzv_endpoint") and backend is None):
        needed.pop("node_rank")
    missing = [name for name in needed if not is_said(name)]
    said = told["nnodes"].variable if "nnodes" in told else f"--nnodes {nnodes}"
    counts = f"RANK={env['RANK']} counts processes and is set by their launcher" if env.get("RANK") else ""
    if missing and (told or counts):
        hint = f" ({counts}: a node's own number is NODE_RANK)" if counts and "node_rank" in missing else ""
        raise UsageError(
            f"{said} also needs {' and '.join(needed[name] for name in missing)}, or the option of that name{hint}; "
            f"{_ALONE}"
        )
    node_rank = told.get("node_rank")
    if node_rank is None:
        return
    if int(node_rank.value) >= _most(nnodes):
        raise UsageError(f"{node_rank.variable} with {said}: node ranks go from 0 to {_most(nnodes) - 1}")
    slurm = env.get("SLURM_NODEID") if "SLURM_STEP_ID" in env else None
    in_step = env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES")
    if slurm is not None and in_step == nnodes and node_rank.value != slurm:
        raise UsageError(
            f"{node_rank.variable}, but Slurm says that this is node {slurm} of its step: in a batch script "
            "SLURM_NODEID is always 0, so set NODE_RANK in each task: `srun bash -c 'NODE_RANK=$SLURM_NODEID allranks "
            "…'`; or start `allranks` without srun: it starts on all nodes of the job"
        )


def _refuse_signs(env: Mapping[str, str]) -> None:
    for sign in signs(env):
        raise UsageError(
            f"{sign.text}, and each would train alone: give {sign.instead}, or --nnodes 1 to train on this node alone"
        )


def _with_accelerates_file(
    options: LaunchOptions, allocation: Allocation | None, env: Mapping[str, str], notes: list[str]
) -> LaunchOptions:
    """`accelerate config` has told this node its place: `axolotl train` alone then trains on several nodes."""
    if options.accelerate_config is not None or "num_machines" in options.accelerate_options:
        return options
    machines = default_machines(env)
    path = default_file(env)
    if machines < 2 or options.nnodes == str(machines):
        return options
    said = f"{path}: num_machines: {machines}"
    if options.nnodes is not None:
        notes.append(f"{said} is not used: this run has --nnodes {options.nnodes}")
        return options
    if allocation is not None:
        notes.append(f"{said} is not used: the nodes are those of {allocation}")
        return options
    if options.rdzv_endpoint is not None or options.launcher not in (None, "accelerate"):
        raise UsageError(
            f"{said}, but nothing else says how many nodes there are, and each would train alone: give --nnodes "
            f"{machines} with this node's place, or --nnodes 1; `--launcher accelerate` takes that file"
        )
    notes.append(
        f"{said} is taken, as with --launcher accelerate --accelerate-config {path}; {_ALONE}, without that file"
    )
    return replace(options, launcher="accelerate", accelerate_config=str(path))


def _with_torchruns_options(options: LaunchOptions, env: Mapping[str, str], notes: list[str]) -> LaunchOptions:
    """PET_* of torchrun's other options: its launcher gets them as if they stood behind the lone `--`."""
    more: list[str] = []
    for name, takes_value in TORCHRUN.passed.items():
        variable = f"PET_{name[2:].replace('-', '_').upper()}"
        if takes_value and (value := env.get(variable)) and not _holds(options.launcher_args, name):
            if options.launcher in (None, "torchrun"):
                more += [name, value]
                notes.append(f"{variable}={value} is taken, as if {name} {value} were given after `--`")
            else:
                notes.append(f"{variable}={value} is not used: it is for torchrun, not for {options.launcher}")
    for name, why in TORCHRUN.refused.items():
        variable = f"PET_{name[2:].replace('-', '_').upper()}"
        if env.get(variable):
            notes.append(f"{variable} is not used: {why}")
    return replace(options, launcher_args=(*options.launcher_args, *more)) if more else options


def _holds(words: tuple[str, ...], name: str) -> bool:
    return any(word.partition("=")[0].replace("_", "-") == name for word in words)


def _with(options: LaunchOptions, taken: Mapping[str, Told]) -> LaunchOptions:
    values = {name: int(one.value) if name in _INTEGERS else one.value for name, one in taken.items()}
    return replace(options, **values)  # type: ignore[arg-type]


def _default(name: str) -> object:
    return 0 if name == "max_restarts" else None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(told: Mapping[str, Told], names: Iterable[str], *, flags: bool = False) -> str:
    return ", ".join(told[name].variable + (f" ({_flag(name)})" if flags else "") for name in names if name in told)
