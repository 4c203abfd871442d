"""What the checks of measurements must find, and what is nearly that and must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from allranks.cluster.measure.children import AllReduce, DeviceMeasured
from allranks.cluster.measure.values import Link, TransportMeasured
from allranks.plan.step import PlannedStep
from tests.simulated_nodes import Cluster
from tests.unit.preflight.cases import Case, Change, both, everywhere, variable


def links(change: Callable[[Link, str], Link]) -> Change:
    """Change every link of the node."""

    def apply(cluster: Cluster, node: str) -> None:
        measured = cluster.have_measured()
        changed = [change(one, node) if node in (one.source, one.target) else one for one in measured.links]
        cluster.measured = replace(measured, links=changed)

    return apply


def slower(share: float) -> Change:
    return links(lambda link, node: replace(link, bytes_per_second=share * link.bytes_per_second))


def over(kind: str, change: Callable[[Link], Link], *, share: float = 1.0, interface: str = "ens9") -> Change:
    """Another transport, over which all nodes carry a `share` of what the ranks' links do, and this one's links change:
    one of their adapters, or a network."""

    def apply(cluster: Cluster, node: str) -> None:
        measured = cluster.have_measured()
        if kind == "rdma":
            made = next(one for one in measured.others if one.kind == "rdma")
        else:
            rate = share * max(one.bytes_per_second for one in measured.links)
            links = [replace(one, interface=interface, bytes_per_second=rate) for one in measured.links]
            made = TransportMeasured("tcp", "10.99.0.0/24", links)
        changed = [change(one) if node in (one.source, one.target) else one for one in made.links]
        others = [one for one in measured.others if one.kind == "rdma" and one.name != made.name]
        cluster.measured = replace(measured, others=[*others, replace(made, links=changed)])

    return apply


def at(share: float) -> Callable[[Link], Link]:
    return lambda link: replace(link, bytes_per_second=share * link.bytes_per_second)


def fails(link: Link) -> Link:
    return replace(link, bytes_per_second=None, failed="ib_write_bw: Couldn't allocate MR")


def second_card(cluster: Cluster, node: str) -> None:
    """Every node has one more, in a network of its own."""
    for number, report in enumerate(cluster.reports.values()):
        address = {"address": f"10.99.0.{number + 1}", "prefix": 24}
        card = {"name": "ens9", "state": "up", "carrier": True, "kind": "physical", "addresses": [address]}
        report["interfaces"].insert(2, {**card, "mtu": report["interfaces"][1]["mtu"]})


def device(change: Callable[[DeviceMeasured], None]) -> Change:
    """Change the node's first device."""

    def apply(cluster: Cluster, node: str) -> None:
        change(cluster.have_measured().devices[node][0])

    return apply


def scaled(name: str, share: float) -> Change:
    return device(lambda one: setattr(one, name, share * getattr(one, name)))


def wrong_sum(one: DeviceMeasured) -> None:
    one.all_reduces[-1] = replace(one.all_reduces[-1], right=False)


def never_joined(one: DeviceMeasured) -> None:
    one.joined, one.done, one.all_reduces, one.failed = False, False, [], "RuntimeError: no route to host"


def slow_sum(one: DeviceMeasured) -> None:
    one.all_reduces[-1] = AllReduce(2**25, 3.0, True)


def counted(num_bytes: float | None) -> Change:
    def apply(cluster: Cluster, node: str) -> None:
        cluster.measured = replace(cluster.have_measured(), crossing_bytes=num_bytes, step_seconds=2.0)

    return apply


def planned(**changes: Any) -> Change:
    """A step of a small model, which is known by the model's shapes."""
    own = PlannedStep("ZeRO-3", True, 1e9, 1e12, 1e9)
    other = replace(own, name="ZeRO-2", is_own=False, node_sends_bytes=1e8, state_bytes=1e15)

    def apply(cluster: Cluster, node: str) -> None:
        cluster.have_measured()
        cluster.want(steps=[replace(own, **changes), other])

    return apply


def not_measured(cluster: Cluster, node: str) -> None:
    cluster.measured = None


def diagnosed(*lines: str) -> Change:
    return device(lambda one: one.diagnostics.extend(lines))


CASES = [
    Case(
        "measured.nccl",
        "ethernet",
        diagnosed("[OK] Driver", "[WARN] GPU 3: NVLink 2 is inactive"),
        diagnosed("[OK] Driver", "[INFO] NCCL_DEBUG=INFO"),
        "NVLink 2 is inactive",
        "warning",
    ),
    Case("measured.bandwidth", "cpu", slower(0.1), slower(0.6), "every link that was measured of it is slow"),
    Case("measured.bandwidth", "ethernet", slower(0.3), slower(0.6), "come through", "warning"),
    Case(
        "measured.latency",
        "cpu",
        links(lambda link, node: replace(link, latency_seconds=0.02)),
        links(lambda link, node: replace(link, latency_seconds=0.001)),
        "a message takes 20 ms",
        "warning",
    ),
    Case("measured.matmul", "cpu", scaled("matmul_flops", 0.15), scaled("matmul_flops", 0.6), "matmul runs", "warning"),
    Case("measured.matmul", "ethernet", scaled("matmul_flops", 0.7), scaled("matmul_flops", 0.9), "cuda:0", "warning"),
    Case("measured.copy", "ethernet", scaled("copy_bytes_per_second", 0.5), not_measured, "is copied", "warning"),
    Case("measured.all-reduce", "cpu", device(wrong_sum), device(slow_sum), "gave a wrong sum"),
    Case("measured.all-reduce", "ethernet", device(never_joined), not_measured, "no route to host"),
    Case("measured.step", "cpu", counted(1e9), counted(None), "took 2 s in the median", "note", all_nodes=True),
    Case(
        "measured.step",
        "ethernet",
        planned(),
        not_measured,
        "ZeRO-3 (this config) will spend",
        "note",
        all_nodes=True,
    ),
    Case(
        "measured.networks",
        "cpu",
        over("tcp", at(0.1)),
        over("tcp", at(0.6)),
        "over 10.99.0.0/24, every link that was measured of it is slow",
        "note",
    ),
    Case(  # NCCL sends over every interface that is selected
        "measured.networks",
        "ethernet",
        both(everywhere(variable("NCCL_SOCKET_IFNAME", "^docker,lo,veth")), second_card, over("tcp", at(0.1))),
        both(everywhere(variable("NCCL_SOCKET_IFNAME", "^docker,lo,veth")), second_card, over("tcp", at(0.6))),
        "over 10.99.0.0/24, every link that was measured of it is slow",
        "warning",
    ),
    Case(
        "measured.faster-network",
        "cpu",
        over("tcp", at(1), share=2.5),
        over("tcp", at(1), share=1.5),
        "and ens9 (10.99.0.0/24) carries ",
        "warning",
        all_nodes=True,
    ),
    Case(
        "measured.infiniband",
        "infiniband",
        over("rdma", at(0.1)),
        over("rdma", at(0.95)),
        "by ib_write_bw over mlx5_0:1, every link that was measured of it is slow",
    ),
    Case("measured.infiniband", "roce", over("rdma", at(0.7)), over("rdma", at(0.95)), "that its port has", "warning"),
    Case("measured.infiniband", "infiniband", over("rdma", fails), over("rdma", at(0.95)), "allocate MR", "warning"),
    Case("measured.figures", "cpu", device(slow_sum), not_measured, "links carry", "note", all_nodes=True),
]
