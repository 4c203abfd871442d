"""Where is this run to start: on this machine, or on all nodes from here, and how are those reached?"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from allranks.cluster.allocation import Allocation, find_allocation
from allranks.cluster.nodes import Host, parse_hosts, read_hostfile
from allranks.cluster.transports import Transport
from allranks.cluster.transports.ssh import is_this_machine
from allranks.errors import UsageError
from allranks.launch.spec.by_hand import without_options
from allranks.launch.spec.everywhere import Everywhere
from allranks.launch.spec.options import C10D_PORT, STATIC_PORT, LaunchOptions, with_given_places

REMOTE_STARTS = ("auto", "ssh", "srun", "pbsdsh", "local")
# Options about the nodes: each node's own command gets those of its place anew.
_ABOUT_NODES = {
    "--hosts",
    "--hostfile",
    "--remote-start",
    "--python",
    "--export",
    "--nnodes",
    "--num-nodes",
    "--nproc-per-node",
    "--master-addr",
    "--master-port",
}


@dataclass(frozen=True)
class NodeOptions:
    """Which nodes were asked for (None = not given), and how they are to be reached."""

    hosts: str | None = None
    hostfile: str | None = None
    remote_start: str = "auto"
    python: str | None = None
    exports: tuple[str, ...] = ()


def find_nodes(
    asked: NodeOptions, launch: LaunchOptions, words: Sequence[str], env: Mapping[str, str] = os.environ
) -> Everywhere | None:
    """What to start on all nodes: those of --hosts or --hostfile, else those of the allocation around this process.

    None where the run is for this machine: as its only node, or as one of several that are each started by hand.
    `words` is the command line, as in `sys.argv[1:]`. Raises UsageError for options that contradict each other.
    """
    if asked.remote_start not in REMOTE_STARTS:
        raise UsageError(f"--remote-start {asked.remote_start}: expected one of {', '.join(REMOTE_STARTS)}")
    if asked.hosts is not None and asked.hostfile is not None:
        raise UsageError("--hosts and --hostfile both name the nodes: give one of them")
    if asked.hosts is None and asked.hostfile is None:
        return _of_allocation(asked, with_given_places(launch), words, env)
    _refuse_one_nodes_options(launch)
    hosts = parse_hosts(asked.hosts) if asked.hosts is not None else read_hostfile(asked.hostfile or "")
    if launch.nnodes not in (None, str(len(hosts))):
        raise UsageError(
            f"--nnodes {launch.nnodes}, but {'--hosts' if asked.hosts else asked.hostfile} names {len(hosts)} node(s): "
            "leave --nnodes out"
        )
    kind = asked.remote_start
    allocation = find_allocation(env) if kind in ("auto", "srun", "pbsdsh") else None
    if kind == "auto":
        inside = allocation is not None and {host.name for host in hosts} <= {host.name for host in allocation.hosts}
        kind = _remote_start_of(allocation) if allocation is not None and inside else "ssh"
    elif kind in ("srun", "pbsdsh") and (allocation is None or _SCHEDULER[kind] != allocation.scheduler):
        raise UsageError(f"--remote-start {kind}: this is not inside a {_NAME[kind]} job")
    return _everywhere(hosts, kind, asked, launch, words)


_SCHEDULER = {"srun": "slurm", "pbsdsh": "pbs"}
_NAME = {"srun": "Slurm", "pbsdsh": "PBS"}


def _of_allocation(
    asked: NodeOptions, launch: LaunchOptions, words: Sequence[str], env: Mapping[str, str]
) -> Everywhere | None:
    by_hand = launch.node_rank is not None or launch.rdzv_endpoint is not None or launch.launcher == "ray"
    if by_hand or launch.nnodes == "1" or (launch.nnodes is None and launch.master_addr is not None):
        _refuse_without_nodes(asked, "with --node-rank, --rdzv-endpoint or --nnodes 1 only this node is started")
        return None
    allocation = find_allocation(env)
    if allocation is None:
        _refuse_without_nodes(
            asked, "no nodes are named: add --hosts or --hostfile, or start inside a Slurm or PBS job"
        )
        return None
    if len(allocation.hosts) == 1 and _is_here(allocation, env):
        _refuse_without_nodes(asked, f"{allocation} has this node only: leave it out")
        return None
    hosts = list(allocation.hosts)
    if launch.nnodes is not None:
        if not launch.nnodes.isdecimal() or not 1 <= int(launch.nnodes) <= len(hosts):
            raise UsageError(
                f"--nnodes {launch.nnodes} inside of {allocation}, which has {len(hosts)} node(s): leave it out to "
                "train on all of them, or add --node-rank and --master-addr to start each by hand"
            )
        hosts = hosts[: int(launch.nnodes)]
    kind = _remote_start_of(allocation) if asked.remote_start == "auto" else asked.remote_start
    if _SCHEDULER.get(kind, allocation.scheduler) != allocation.scheduler:
        raise UsageError(f"--remote-start {kind}: this is {allocation}")
    return _everywhere(hosts, kind, asked, launch, words, port=allocation.port)


def _everywhere(
    hosts: Sequence[Host],
    kind: str,
    asked: NodeOptions,
    launch: LaunchOptions,
    words: Sequence[str],
    *,
    port: int | None = None,
) -> Everywhere:
    if launch.nproc_per_node is not None:
        for host in hosts:
            if host.slots not in (None, launch.nproc_per_node):
                raise UsageError(
                    f"--nproc-per-node {launch.nproc_per_node}, but the host file says {host} slots={host.slots}: "
                    "give one of them"
                )
        hosts = [replace(host, slots=launch.nproc_per_node) for host in hosts]
    python = asked.python or sys.executable
    if not python.isprintable() or python.startswith("-"):
        raise UsageError(f"--python {python!r}: expected the path of an interpreter on the nodes")
    port = launch.master_port or port or (C10D_PORT if launch.rdzv_backend == "c10d" else STATIC_PORT)
    # The agents of pbsdsh connect to the head themselves, which costs it no process.
    transport = Transport(kind, python, flat=len(hosts)) if kind == "pbsdsh" else Transport(kind, python)
    own_words = without_options(words, _ABOUT_NODES)
    return Everywhere(hosts, transport, own_words, port, launch.master_addr, asked.exports)


def _remote_start_of(allocation: Allocation) -> str:
    if allocation.scheduler == "slurm":
        return "srun"
    return "pbsdsh" if shutil.which("pbsdsh") else "ssh"


def _is_here(allocation: Allocation, env: Mapping[str, str]) -> bool:
    # `salloc` on a login node leaves the shell there.
    return allocation.scheduler == "pbs" or "SLURMD_NODENAME" in env or is_this_machine(allocation.hosts[0])


def _refuse_one_nodes_options(launch: LaunchOptions) -> None:
    given = {
        "--node-rank": launch.node_rank is not None,
        "--rdzv-endpoint": launch.rdzv_endpoint is not None,
        "--launcher ray": launch.launcher == "ray",
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise UsageError(
            f"{name} with --hosts or --hostfile: those start all nodes, in the order given; give one of them"
        )


def _refuse_without_nodes(asked: NodeOptions, why: str) -> None:
    given = {
        "--remote-start": asked.remote_start != "auto",
        "--python": asked.python is not None,
        "--export": bool(asked.exports),
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise UsageError(f"{name} is for starting other nodes, but {why}")
