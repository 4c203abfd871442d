"""For each check what it must find on one node of a healthy cluster, and what is nearly that and must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.simulated_nodes import GIB, MIB, ClockOffset, Cluster

Change = Callable[[Cluster, str], object]


@dataclass(frozen=True)
class Case:
    """`fault` and `near_miss` change a cluster of `kind` at one node. `found`: what the finding's text must contain."""

    check: str
    kind: str
    fault: Change
    near_miss: Change
    found: str
    severity: str = "error"
    wanted: dict[str, Any] | None = None


def put(place: str, value: Any) -> Change:
    """A change of the node's report at `limits.memlock`, `gpus.0.used` and the like."""

    def change(cluster: Cluster, node: str) -> None:
        at = cluster.reports[node]
        *way, last = place.split(".")
        for step in way:
            at = at[int(step) if isinstance(at, list) else step]
        at[int(last) if isinstance(at, list) else last] = value

    return change


def both(*changes: Change) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        for each in changes:
            each(cluster, node)

    return change


def everywhere(one: Change) -> Change:
    """The same on all nodes."""

    def change(cluster: Cluster, node: str) -> None:
        for each in cluster.nodes:
            one(cluster, each)

    return change


def variable(name: str, value: str) -> Change:
    """In the node's environment, by its report and by its account."""

    def change(cluster: Cluster, node: str) -> None:
        cluster.reports[node]["environment"][name] = value
        if node in cluster.network:
            cluster.network[node][name] = value

    return change


def clock(seconds: float, within: float = 0.01) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        cluster.clocks = {each: ClockOffset(0.0, 0.01) for each in cluster.nodes}
        cluster.clocks[node] = ClockOffset(seconds, within)

    return change


def no_clocks(cluster: Cluster, node: str) -> None:
    cluster.clocks = None


NO_ROOT = put("uid", 1000)
RANKS = {"nproc_per_node": 8}

LIMITS = [
    Case(
        "limits.memlock",
        "infiniband",
        both(NO_ROOT, put("limits.memlock", 64 * 1024)),
        both(put("uid", 0), put("system.container", None), put("limits.memlock", 64 * 1024)),
        "may lock 65.5 kB",
    ),
    Case(
        "limits.memlock",
        "roce",
        both(NO_ROOT, put("limits.memlock", 512 * MIB)),
        both(NO_ROOT, put("limits.memlock", GIB)),
        "may lock 536.9 MB",
        "warning",
    ),
    Case(
        "limits.memlock",
        "infiniband",
        both(put("uid", 0), put("system.container", "docker"), put("limits.memlock", 8 * MIB)),
        both(NO_ROOT, put("limits.memlock", 8 * MIB), everywhere(variable("NCCL_IB_DISABLE", "1"))),
        "may lock 8.4 MB",
    ),
    Case(
        "limits.shm",
        "ethernet",
        put("shm.total", 64 * MIB),
        put("shm.total", 512 * MIB),
        "/dev/shm has",
        wanted=RANKS,
    ),
    Case(
        "limits.shm",
        "ethernet",
        put("shm.total", 128 * MIB),
        lambda cluster, node: (put("shm.total", 128 * MIB)(cluster, node), cluster.want(nproc_per_node=1)),
        "/dev/shm has",
        "warning",
        wanted=RANKS,
    ),
    Case("limits.shm-full", "cpu", put("shm.free", 4096), put("shm.free", MIB), "/dev/shm is full"),
    Case("limits.nofile", "ethernet", put("limits.nofile", 200), put("limits.nofile", 256), "may open 200 files"),
    Case("limits.nproc", "cpu", both(NO_ROOT, put("limits.nproc", 100)), both(put("uid", 0), put("limits.nproc", 100)),
         "may have 100 processes"),
]  # fmt: skip

CLOCK = [
    Case("clock.spread", "cpu", clock(-120.0), clock(1.9), "its clock is 2.0 min behind"),
    Case("clock.spread", "cpu", clock(10.0), clock(10.0, within=9.0), "its clock is 10.0 s ahead", "warning"),
    Case(
        "clock.spread",
        "infiniband",
        both(no_clocks, put("time", 1_795_900_300.0)),
        both(no_clocks, put("time", 1_795_900_040.0)),
        "its clock is 5.0 min ahead",
    ),
]


def silent(cluster: Cluster, node: str) -> None:
    cluster.reports[node] = None
    cluster.absent[node] = "ssh: connect to host: No route to host"
    cluster.pairs = None
    for table in (cluster.must_match, cluster.network, cluster.clocks or {}, cluster.earlier):
        table.pop(node, None)


def refuses(*texts: str) -> Change:
    return lambda cluster, node: cluster.refusals.update({node: list(texts)})


REPORTS = [
    Case("reach.node", "cpu", silent, put("unanswered", {}), "No route to host"),
    Case("start.refused", "cpu", refuses("output_dir: cannot be written\nchoose another"), refuses(), "output_dir"),
    Case(
        "report.unanswered",
        "cpu",
        put("unanswered", {"paths: data /data": "did not answer in 5 s"}),
        put("unanswered", {"nvidia": "nvidia-smi is not installed", "code": "ended with exit code 1"}),
        "paths: data /data did not answer in 5 s",
    ),
    Case(
        "report.unanswered",
        "ethernet",
        put("unanswered", {"nvidia": "did not answer in 5 s (nvidia-smi -q -x)"}),
        put("unanswered", {"nvidia": "nvidia-smi is not installed"}),
        "nvidia did not answer",
    ),
    Case(
        "report.unanswered",
        "cpu",
        put("unanswered", {"nvidia": "did not answer in 5 s"}),
        put("unanswered", {"nvlinks": "ended with exit code 3"}),
        "nvidia did not answer",
        "warning",
    ),
    Case("report.unreadable", "cpu", put("shm", 7), put("later_version", 7), "shm is a number", "note"),
]

CASES = [*REPORTS, *LIMITS, *CLOCK]
