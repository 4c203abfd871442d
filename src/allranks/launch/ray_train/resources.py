"""How many workers, what each one needs, and whether a cluster has it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from allranks.cluster.cores import usable_cores
from allranks.config.sections.launch import LaunchConfig
from allranks.listing import few

Nodes = Mapping[str, Mapping[str, float]]
"""Address of a node -> its resources, such as {"CPU": 16, "GPU": 8, "memory": 6.4e10}."""


@dataclass(frozen=True)
class Demand:
    """`reason` says where the number of workers comes from; `placement` is one of Ray's placement strategies."""

    num_workers: int
    resources: Mapping[str, float]
    placement_strategy: str
    reason: str

    def __str__(self) -> str:
        return f"{self.num_workers} x {listed(self.resources)}"


def demand(settings: LaunchConfig, nodes: Nodes) -> Demand:
    """What the config asks for on a cluster of these nodes: one worker a GPU; without any GPU, one a node."""
    gpus = int(sum(node.get("GPU", 0) for node in nodes.values()))
    resources = dict(settings.resources_per_worker or {"CPU": 1})
    resources.setdefault("GPU", 1 if gpus else 0)
    on_gpus = resources["GPU"] > 0
    if not on_gpus:
        del resources["GPU"]
    if settings.ray_num_workers is not None:
        return Demand(settings.ray_num_workers, resources, "PACK" if on_gpus else "SPREAD", "as asked for")
    if on_gpus:
        return Demand(max(1, gpus), resources, "PACK", "one for each GPU of the cluster")
    return Demand(max(1, len(nodes)), resources, "SPREAD", "one for each node, without GPUs")


def local_size(settings: LaunchConfig, *, num_cores: int, num_gpus: int) -> dict[str, int]:
    """The CPUs and GPUs that a cluster on this machine alone says it has.

    CPUs are but numbers to Ray: as many as the workers need, as under torchrun, which does not count cores either.
    """
    workers = settings.ray_num_workers or max(1, num_gpus)
    needed = workers * (settings.resources_per_worker or {}).get("CPU", 1)
    return {"CPU": max(num_cores, math.ceil(needed)), "GPU": num_gpus}


def fitting(resources: Mapping[str, float], nodes: Nodes) -> int:
    """How many such workers fit on these nodes, each on one of them."""
    needed = {name: amount for name, amount in resources.items() if amount > 0}
    if not needed:
        return 10**9 if nodes else 0  # a worker that needs nothing fits anywhere
    return sum(min(int(node.get(name, 0) / amount) for name, amount in needed.items()) for node in nodes.values())


def shortage(wanted: Demand, nodes: Nodes, free: Mapping[str, float]) -> str:
    """What was asked for and what there is, for somebody who waits."""
    each = [f"{address} {listed(_of_interest(node, wanted))}" for address, node in sorted(nodes.items())]
    has = few(each, 16, between="; ", rest="; and {:,} more nodes")
    unused = listed({name: free.get(name, 0) for name in wanted.resources})
    return (
        f"asked for {wanted}; the cluster has {len(nodes)} node(s), which hold {fitting(wanted.resources, nodes)} such "
        f"worker(s): {has or 'none'}; free now, over all nodes: {unused}"
    )


def awaited(
    wanted: Demand, nodes: Nodes, free: Mapping[str, float], *, num_started: int, is_own: bool, busy: str
) -> str:
    """What somebody waits for whose workers have not all started: resources; or, where there are enough, processes.

    All that is reserved on a cluster that is the run's own is reserved for it. `busy` says that this machine has more
    to do than it has cores, and is empty else.
    """
    text = shortage(wanted, nodes, free)
    if is_own or num_started + fitting(wanted.resources, {"free": free}) >= wanted.num_workers:
        return f"{text}; nothing is missing, processes of Ray are still starting{busy and f': {busy}'}"
    return text


def busy_here() -> str:
    """That this machine has more to do than it has cores, by the mean of the last minute; else nothing."""
    load, cores = os.getloadavg()[0], usable_cores()
    return f"this machine has a load of {load:.0f} on {cores} core(s)" if load > 1.5 * cores else ""


def listed(resources: Mapping[str, float]) -> str:
    """As users write it: `{CPU: 1, GPU: 1}`."""
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in sorted(resources.items())) + "}"


def _of_interest(node: Mapping[str, float], wanted: Demand) -> dict[str, float]:
    return {name: node.get(name, 0) for name in wanted.resources}
