"""The same as in `cases`, of InfiniBand, RoCE and GPUs."""

from __future__ import annotations

from typing import Any

from tests.simulated_nodes import GIB, MIB, Cluster
from tests.unit.preflight.cases import Case, Change, both, everywhere, put, variable, wants


def ports(number: int = 0, **values: Any) -> Change:
    """A change of the node's port of this number."""
    return both(*(put(f"infiniband.{number}.{name}", value) for name, value in values.items()))


def gpu(number: int = 0, **values: Any) -> Change:
    return both(*(put(f"gpus.{number}.{name}", value) for name, value in values.items()))


def every_gpu(**values: Any) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        for each in cluster.reports[node]["gpus"]:
            each.update(values)

    return change


def add_port(**values: Any) -> Change:
    """One more port, on this node; like its first, but for these values."""

    def change(cluster: Cluster, node: str) -> None:
        known = cluster.reports[node]["infiniband"]
        known.append({**known[0], "device": f"mlx5_{len(known) + 20}", **values})

    return change


def all_down(cluster: Cluster, node: str) -> None:
    for port in cluster.reports[node]["infiniband"]:
        port |= DOWN


def counted(name: str, before: int, after: int) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        first = cluster.reports[node]["infiniband"][0]
        cluster.earlier = {node: {"infiniband": [{**first, "counters": {**first["counters"], name: before}}]}}
        first["counters"] = {**first["counters"], name: after}

    return change


def lose_gpu(cluster: Cluster, node: str) -> None:
    report = cluster.reports[node]
    report["gpu_system"] |= {"num_present": len(report["gpus"]), "num_device_nodes": None, "visible": None}
    del report["gpus"][-1]


def only_one_gpu(cluster: Cluster, node: str) -> None:
    """Was there ever more?"""
    del cluster.reports[node]["gpus"][1:]
    cluster.reports[node]["gpu_system"] |= {"num_present": None, "num_device_nodes": None}


def some_given(cluster: Cluster, node: str) -> None:
    """By a scheduler, on every node."""
    for report in cluster.reports.values():
        report["gpu_system"] |= {"num_present": 8, "num_device_nodes": 8}


XID_79 = "2026-11-20 10:00:00Z NVRM: Xid (PCI:0000:{}): 79, pid=7, GPU has fallen off the bus."
XID_31 = "2026-11-20 10:00:00Z NVRM: Xid (PCI:0000:f1:00): 31, pid=7, MMU Fault"
DOWN = {"state": "DOWN", "physical_state": "Disabled", "rate_gbits": 10.0}
RESET = "2026-11-20 10:00:00Z amdgpu 0000:05:00.0: amdgpu: GPU reset begin!"
LINK_LOCAL = "fe80:0000:0000:0000:a088:c203:0000:0001"
TWO = {"nproc_per_node": 2}
V1_ONLY = [{"index": index, "gid": f"0000::ffff:0a00:{index:04x}", "type": "IB/RoCE v1"} for index in range(4)]
V2_LAST = [*V1_ONLY[:3], {"index": 3, "gid": "0000::ffff:0a00:0003", "type": "RoCE v2"}]

FABRIC = [
    Case("fabric.missing", "infiniband", all_down, everywhere(all_down), "none of its ports is active"),
    Case("fabric.missing", "roce", put("infiniband", []), everywhere(put("infiniband", [])), "it has no InfiniBand"),
    Case(
        "fabric.missing",
        "infiniband",
        lambda cluster, node: [port.update(selected=False) for port in cluster.reports[node]["infiniband"]],
        both(put("infiniband", []), everywhere(variable("NCCL_IB_DISABLE", "1"))),
        "selects none of its ports",
    ),
    Case(
        "fabric.port-state",
        "infiniband",
        both(everywhere(add_port()), lambda cluster, node: cluster.reports[node]["infiniband"][-1].update(DOWN)),
        add_port(**DOWN),
        "(DOWN, Disabled)",
        "warning",
    ),
    Case(
        "fabric.port-state",
        "roce",
        both(
            everywhere(add_port()),
            everywhere(
                variable("NCCL_IB_HCA", "=mlx5_0,mlx5_21,mlx5_22,mlx5_23,mlx5_24,mlx5_25,mlx5_26,mlx5_27,mlx5_28")
            ),
            lambda cluster, node: cluster.reports[node]["infiniband"][-1].update(DOWN),
        ),
        both(everywhere(variable("NCCL_IB_HCA", "=mlx5_0:1")), add_port(**DOWN)),
        "NCCL_IB_HCA names",
    ),
    Case(
        "fabric.rate",
        "infiniband",
        ports(rate_gbits=200.0),
        everywhere(ports(rate_gbits=200.0)),
        "mlx5_0:1 at 200 Gb/s",
        "warning",
    ),
    Case(
        "fabric.rate", "roce", ports(rate_gbits=40.0), ports(rate_gbits=800.0), "where others have 400 Gb/s", "warning"
    ),
    Case(
        "fabric.link-layer",
        "infiniband",
        add_port(link_layer="Ethernet", subnet=None, gids=V2_LAST),
        add_port(**DOWN, link_layer="Ethernet"),
        "the link layer of its active ports is",
    ),
    Case(
        "fabric.subnet",
        "infiniband",
        ports(subnet="fe80:0000:0000:0001"),
        everywhere(ports(subnet="fe80:0000:0000:0001")),
        "fe80:0000:0000:0001",
    ),
    Case(
        "fabric.counters",
        "infiniband",
        counted("symbol_error", 3, 9),
        counted("symbol_error", 9, 9),
        "symbol_error by 6",
        "warning",
    ),
    Case(
        "fabric.counters",
        "roce",
        counted("link_downed", 0, 1),
        counted("out_of_sequence", 0, 70),
        "link_downed by 1",
        "warning",
    ),
    Case(
        "fabric.gid",
        "roce",
        both(everywhere(variable("NCCL_IB_GID_INDEX", "3")), ports(gids=V1_ONLY)),
        both(everywhere(variable("NCCL_IB_GID_INDEX", "3")), ports(gids=V2_LAST)),
        "is of type IB/RoCE v1",
    ),
    Case(
        "fabric.gid",
        "roce",
        both(everywhere(variable("NCCL_IB_GID_INDEX", "3")), ports(gids=V2_LAST[:2])),
        everywhere(variable("NCCL_IB_GID_INDEX", "3")),
        "has no GID 3",
    ),
    Case(
        "fabric.gid",
        "roce",
        both(everywhere(variable("NCCL_IB_GID_INDEX", "-1")), ports(gids=V1_ONLY)),
        both(everywhere(variable("NCCL_IB_GID_INDEX", "-1")), ports(gids=V2_LAST)),
        "no GID of type RoCE v2",
    ),
    Case(
        "fabric.gid",
        "roce",
        both(
            everywhere(variable("NCCL_IB_GID_INDEX", "3")),
            ports(gids=[*V1_ONLY[:3], {"index": 3, "gid": LINK_LOCAL, "type": "RoCE v2"}]),
        ),
        both(everywhere(variable("NCCL_IB_GID_INDEX", "3")), ports(gids=None)),
        "link-local",
        "warning",
    ),
    Case(
        "fabric.peermem",
        "infiniband",
        both(everywhere(put("gpu_system.nvidia_peermem", True)), put("gpu_system.nvidia_peermem", False)),
        everywhere(put("gpu_system.nvidia_peermem", False)),
        "nvidia_peermem is not loaded",
        "warning",
    ),
    Case("fabric.acs", "infiniband", put("gpu_system.acs", True), put("gpu_system.acs", None), "(ACS)", "note"),
]

GPUS = [
    Case(
        "gpus.count", "ethernet", only_one_gpu, every_gpu(mig=None), "2 ranks want a GPU each, and it has 1", wanted=TWO
    ),
    Case(
        "gpus.count",
        "infiniband",
        put("gpu_system.visible", "0"),
        put("gpu_system.visible", "1,0"),
        "(CUDA_VISIBLE_DEVICES)",
        wanted=TWO,
    ),
    Case(
        "gpus.lost",
        "ethernet",
        both(
            everywhere(lambda cluster, node: cluster._have_gpus(cluster.reports[node], 4)),
            put("system.container", None),
            lose_gpu,
        ),
        some_given,
        "GPUs are there",
        "warning",
        wanted=TWO,
    ),
    Case(
        "gpus.model",
        "ethernet",
        every_gpu(model="Tesla V100"),
        everywhere(every_gpu(model="Tesla V100")),
        "Tesla V100",
        "warning",
    ),
    Case(
        "gpus.memory",
        "amd",
        both(wants(expected=None), gpu(memory=16 * GIB)),
        lambda cluster, node: every_gpu(memory=cluster.reports[node]["gpus"][0]["memory"] - 40 * MIB)(cluster, node),
        "16 GiB",
        "warning",
    ),
    Case(
        "gpus.used",
        "infiniband",
        gpu(used=30 * GIB, processes=[{"pid": 77, "user": "eve", "command": "python3 x.py"}]),
        gpu(used=2 * GIB, processes=[{"pid": 77}]),
        "by python3 x.py (pid 77, of eve)",
    ),
    Case("gpus.used", "amd", gpu(used=40 * GIB, processes=None), gpu(used=None), "are in use"),
    Case(
        "gpus.ecc", "ethernet", gpu(ecc_uncorrected=2, remapped_pending=True), gpu(ecc_uncorrected=0), "2 uncorrectable"
    ),
    Case("gpus.ecc", "roce", gpu(ecc_uncorrected=1), gpu(ecc_uncorrected=None), "1 uncorrectable", "warning"),
    Case("gpus.ecc", "ethernet", gpu(remapped_failed=True), gpu(remapped_failed=None), "could not be replaced"),
    Case(
        "gpus.ecc", "ethernet", gpu(remapped_pending=True), gpu(remapped_pending=None), "wait to be replaced", "warning"
    ),
    Case(
        "gpus.throttled",
        "infiniband",
        gpu(throttled=["hw_thermal_slowdown"], temperature=91.0),
        gpu(throttled=["sw_power_cap"], temperature=80.0),
        "slowed down at 91 °C (hw_thermal_slowdown)",
        "warning",
    ),
    Case(
        "gpus.pcie",
        "ethernet",
        both(everywhere(every_gpu(pcie_width=16)), gpu(pcie_width=8)),
        everywhere(every_gpu(pcie_width=8)),
        "8 of 16 PCIe lanes",
        "warning",
    ),
    Case(
        "gpus.nvlink",
        "infiniband",
        both(everywhere(every_gpu(nvlinks=12, nvlinks_active=12)), gpu(nvlinks_active=9)),
        everywhere(every_gpu(nvlinks=12, nvlinks_active=0)),
        "9 NVLinks are active",
        "warning",
    ),
    Case(
        "gpus.fabric-manager",
        "infiniband",
        put("gpu_system.fabric_manager", "inactive"),
        both(put("gpu_system.fabric_manager", "inactive"), every_gpu(fabric="Completed")),
        "manager is inactive",
    ),
    Case(
        "gpus.fabric-manager",
        "infiniband",
        both(put("gpu_system.fabric_manager", "active"), every_gpu(fabric="In Progress")),
        put("gpu_system.fabric_manager", "active"),
        "(In Progress)",
    ),
    Case(
        "gpus.xid",
        "ethernet",
        put("gpu_system.xids", [XID_31, XID_79.format("f1:00")]),
        put("gpu_system.xids", [XID_31]),
        "does not show it any more",
    ),
    Case(
        "gpus.xid",
        "ethernet",
        put("gpu_system.xids", [XID_79.format("01:00")]),
        put("gpu_system.xids", None),
        "Xid 79",
        "warning",
    ),
    Case("gpus.xid", "amd", put("gpu_system.xids", [RESET]), put("gpu_system.xids", []), "reported faults", "warning"),
    Case("gpus.mig", "ethernet", gpu(mig="Enabled"), gpu(mig="disabled"), "(MIG)", "warning"),
]

CASES = [*FABRIC, *GPUS]
