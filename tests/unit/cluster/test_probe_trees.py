"""What the probe finds on machines that this one is not, recorded as trees of files."""

import contextlib
import json
import random
import re
from pathlib import Path

import pytest

from allranks.cluster.infiniband import ports, select
from allranks.cluster.node_report import NodeReport
from allranks.cluster.probe import (
    ProbeRequest,
    adapters,
    amd,
    interfaces,
    kernel_log,
    mounts,
    nvidia,
    pci,
    probe_this_node,
    processes,
    system,
)
from allranks.cluster.probe.node import Node, ToolMissing
from tests import recorded_nodes
from tests.recorded_nodes import GIB, RecordedNode

PATHS = (
    {"path": "/home/ana/run", "purpose": "output_dir"},
    {"path": "/scratch fast/data", "purpose": "data"},
    {"path": "/etc/passwd", "purpose": "model"},
)


def probe(node: RecordedNode, root: Path) -> NodeReport:
    return probe_this_node(ProbeRequest(root=node.write(root), paths=PATHS, deadline_seconds=60))


@pytest.fixture(scope="module")
def dgx(tmp_path_factory: pytest.TempPathFactory) -> NodeReport:
    return probe(recorded_nodes.dgx(), tmp_path_factory.mktemp("dgx"))


@pytest.fixture(scope="module")
def roce(tmp_path_factory: pytest.TempPathFactory) -> NodeReport:
    return probe(recorded_nodes.roce(), tmp_path_factory.mktemp("roce"))


@pytest.fixture(scope="module")
def amd_node(tmp_path_factory: pytest.TempPathFactory) -> NodeReport:
    return probe(recorded_nodes.amd(), tmp_path_factory.mktemp("amd"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> NodeReport:
    return probe(recorded_nodes.broken(), tmp_path_factory.mktemp("broken"))


def test_a_dgx_has_all_that_it_should(dgx):
    assert dgx.unanswered == {} and dgx.unreadable == () and dgx.withheld == {}
    assert (dgx.host, dgx.uid, dgx.system.os, dgx.system.container) == ("dgx01", 1001, "Ubuntu 22.04.4 LTS", None)
    assert (dgx.cpu.num_cores, dgx.cpu.num_usable, dgx.cpu.num_numa_nodes) == (224, 224, 2)
    assert (dgx.cpu.cgroup_cores, dgx.memory.cgroup_limit, dgx.memory.total) == (None, None, 2048 * GIB)
    assert (dgx.limits.memlock, dgx.limits.nofile) == (-1, 1048576) and dgx.clock.synchronized
    found = dgx.gpu_system
    assert (found.driver, found.cuda, found.num_present, found.num_device_nodes) == ("570.86.15", "12.8", 8, 8)
    assert (found.nvidia_peermem, found.fabric_manager, found.acs, found.xids) == (True, "active", False, ())
    assert len(dgx.gpus) == 8
    for index, gpu in enumerate(dgx.gpus):
        assert (gpu.index, gpu.vendor, gpu.model, gpu.memory) == (
            index,
            "nvidia",
            "NVIDIA H100 80GB HBM3",
            81559 * 2**20,
        )
        assert (gpu.nvlinks, gpu.nvlinks_active, gpu.mig, gpu.fabric) == (18, 18, "Disabled", "Completed")
        assert (gpu.pcie_width, gpu.pcie_width_max, gpu.pcie_generation, gpu.pcie_generation_max) == (16, 16, 5, 5)
        assert (gpu.ecc_uncorrected, gpu.throttled, gpu.processes, gpu.temperature) == (0, (), (), 34)
        assert (gpu.remapped_pending, gpu.remapped_failed, gpu.retired_pages_pending) == (False, False, None)


def test_nccls_adapters_are_those_that_the_variable_selects(dgx):
    selected = [port.device for port in dgx.infiniband if port.selected]
    assert sorted(selected) == sorted(f"mlx5_{number}" for number in recorded_nodes.COMPUTE)
    (port,) = [port for port in dgx.infiniband if port.device == "mlx5_10"]
    assert (port.state, port.physical_state, port.rate_gbits, port.link_layer) == (
        "ACTIVE",
        "LinkUp",
        400,
        "InfiniBand",
    )
    assert (port.subnet, [gid.index for gid in port.gids]) == ("fe80:0000:0000:0000", [0])
    assert port.counters == {
        "symbol_error": 0,
        "link_downed": 3,
        "port_rcv_errors": 0,
        "out_of_sequence": 0,
        "packet_seq_err": 0,
    }
    (storage,) = [port for port in dgx.infiniband if port.device == "mlx5_7"]
    assert (storage.link_layer, storage.netdev, storage.subnet) == ("Ethernet", "enp7s0", None)


def test_secrets_of_a_node_stay_there(dgx):
    assert dgx.environment["HF_TOKEN"] == "<removed>"
    assert dgx.environment["https_proxy"] == "http://<removed>@proxy.example:3128"
    assert dgx.environment["HTTP_PROXY"] == "<removed>@proxy.example:3128"


def test_paths_are_told_by_the_filesystem_that_they_would_lie_on(dgx):
    output, data, model = dgx.paths
    assert (output.mount, output.type, output.network, output.device) == (
        "/home",
        "nfs4",
        True,
        "10.0.9.1:/export/home",
    )
    assert (output.exists, output.free, output.free_inodes) == (False, 9 * GIB, 12)
    assert (data.mount, data.type, data.network, data.free_inodes) == ("/scratch fast", "xfs", False, None)
    assert (model.exists, model.readable, model.mount) == (True, True, "/")
    assert dgx.shm.total == 1024 * GIB


def test_a_roce_node_in_a_job_of_slurm(roce):
    kinds = {nic.name: nic.kind for nic in roce.interfaces}
    assert kinds == {
        "lo": "loopback",
        "ens1f0np0": "physical",
        "ens1f1np1": "physical",
        "bond0": "bond",
        "bond0.70": "vlan",
        "vethab12": "veth",
    }
    bond = roce.interfaces[3]
    assert (bond.speed_mbits, bond.mtu, bond.default_route, bond.carrier) == (400000, 9000, True, True)
    assert [(entry.address, entry.prefix) for entry in bond.addresses] == [("10.1.0.21", 24)]
    (port,) = roce.infiniband
    assert [(gid.index, gid.type) for gid in port.gids] == [
        *[(0, "IB/RoCE v1"), (1, "RoCE v2"), (2, "IB/RoCE v1"), (3, "RoCE v2")],
    ]
    assert port.netdev == "bond0" and port.gids[3].gid.endswith("ffff:0a01:0015")
    assert port.selected, "^mlx5_bond_1 of /etc/nccl.conf takes out another one"
    assert (roce.cpu.num_usable, roce.cpu.cgroup_cores) == (32, 32)
    assert (roce.memory.cgroup_limit, roce.memory.cgroup_used) == (256 * GIB, 2 * GIB)
    assert roce.gpu_system.acs is True and roce.gpu_system.fabric_manager is None
    assert [gpu.nvlinks for gpu in roce.gpus] == [None] * 4


def test_a_container_without_gpus(tmp_path):
    report = probe(recorded_nodes.ethernet(), tmp_path)
    assert report.gpus == report.infiniband == () and report.gpu_system.num_present == 0
    assert report.system.container == "docker"
    assert (report.memory.cgroup_limit, report.memory.cgroup_used, report.cpu.cgroup_cores) == (8 * GIB, GIB, 2.5)
    assert report.limits.memlock == 65536 and report.shm.total == 64 * 2**20
    assert set(report.withheld) == {"gpu_system.xids"} and report.unanswered == {}


def test_amds_gpus(amd_node):
    assert amd_node.unanswered == {} and amd_node.gpu_system.driver == "6.12.12"
    assert [gpu.model for gpu in amd_node.gpus] == ["AMD Instinct MI300X"] * 8
    assert {(gpu.memory, gpu.pcie_width, gpu.pcie_generation, gpu.temperature) for gpu in amd_node.gpus} == {
        (192 * GIB, 16, 5, 41)
    }
    assert [gpu.used for gpu in amd_node.gpus][:3] == [283 * 2**20, 283 * 2**20, 64 * GIB]
    (process,) = amd_node.gpus[2].processes
    assert (process.pid, process.user, process.command, process.used) == (7001, "ana", "python3 serve.py", 60 * GIB)
    assert (amd_node.gpu_system.num_present, amd_node.gpu_system.num_device_nodes) == (8, 8)
    assert "gpu_system.acs" in amd_node.withheld and amd_node.gpu_system.acs is None
    assert {port.gids[3].type for port in amd_node.infiniband} == {"RoCE v2"}


def test_amds_gpus_where_only_the_tool_knows_them(tmp_path):
    node = recorded_nodes.amd()
    node.files = {name: text for name, text in node.files.items() if not name.startswith("/sys")}
    *_, last = amd.look_at_amd(Node(node.write(tmp_path)), Quiet())
    gpus = last["gpus"]
    assert [(gpu["index"], gpu["model"], gpu["memory"]) for gpu in gpus][7] == (7, "AMD Instinct MI300X", 192 * GIB)
    assert len(gpus) == 8 and gpus[0]["pci"] == "0000:05:00.0"


@pytest.mark.parametrize("has_head", [True, False])
def test_amds_gpus_by_the_tool_that_replaces_the_other(has_head, tmp_path):
    node = recorded_nodes.amd()
    cards = [{"gpu": 0, "asic": {"market_name": "AMD Instinct MI325X"}, "bus": {"bdf": "0000:05:00.0"}}, "N/A"]
    node.tools = {"amd-smi": json.dumps({"gpu_data": cards} if has_head else cards)}
    *_, last = amd.look_at_amd(Node(node.write(tmp_path)), Quiet())
    assert [gpu["model"] for gpu in last["gpus"]] == ["AMD Instinct MI325X", *[None] * 7]
    assert last["gpus"][0]["memory"] == 192 * GIB


def test_ten_faults_are_seen(broken, dgx):
    ib = {port.device: port for port in broken.infiniband}
    assert (ib["mlx5_3"].state, ib["mlx5_3"].physical_state) == ("DOWN", "Disabled")
    assert ib["mlx5_4"].rate_gbits == 200
    assert ib["mlx5_9"].link_layer == "Ethernet" and ib["mlx5_9"].selected
    assert {gid.type for gid in ib["mlx5_1"].gids} == {"IB/RoCE v1"}
    assert broken.gpu_system.nvidia_peermem is False
    ecc, throttled, used, half, *_ = broken.gpus
    assert (ecc.ecc_uncorrected, ecc.remapped_pending) == (2, True)
    assert throttled.throttled == ("hw_slowdown", "hw_thermal_slowdown") and throttled.temperature == 91
    (process,) = used.processes
    assert (process.pid, process.user, process.command, process.used) == (
        4242,
        "uid 1002",
        "python3 -m allranks.train",
        70200 * 2**20,
    )
    assert (half.pcie_width, half.pcie_width_max) == (8, 16)
    (line,) = broken.gpu_system.xids
    assert "Xid (PCI:0000:df:00): 79" in line and line.startswith("2026-09-21 ")
    assert len(broken.gpus) == 7 and broken.gpu_system.num_present == 8
    assert [gpu.uuid for gpu in broken.gpus] == [gpu.uuid for gpu in dgx.gpus[:7]]
    (left,) = broken.leftovers
    assert (left.pid, left.orphan, left.seconds) == (4242, True, 86400 - 7200)


@pytest.mark.parametrize(
    ("init", "session", "others", "is_orphan"),
    [
        ("systemd", 90, [90], True),
        ("tini", 90, [], True),
        ("torchrun", 1, [], False),  # process 1 of a container started it
        ("bash", 1, [], False),
        ("bash", 90, [], True),  # and lost it: its session's leader is gone
        ("bash", 90, [90], False),
        ("bash", 91, [], False),  # it leads a session of its own
    ],
)
def test_a_rank_is_an_orphan_where_what_started_it_is_gone(init, session, others, is_orphan, tmp_path):
    node = recorded_nodes.ethernet()
    for pid in (1, 91, *others):
        rest = "91 0 -1 4194304 1 0 0 0 5 5 0 0 20 0 1 0 720000 1 1"
        node.files[f"/proc/{pid}/stat"] = (
            f"{pid} (x) S {1 if pid == 91 else 0} {pid} {session if pid == 91 else pid} {rest}"
        )
    node.files |= {
        "/proc/1/comm": init,
        "/proc/91/cmdline": "python\0t.py",
        "/proc/91/environ": "RANK=0\0LOCAL_RANK=0\0WORLD_SIZE=1",
    }
    *_, last = processes.look_for_leftovers(Node(node.write(tmp_path)), Quiet())
    assert [(found["pid"], found["orphan"]) for found in last["leftovers"]] == [(91, is_orphan)]


def test_the_same_ports_as_the_network_section_sees(dgx, tmp_path):
    root = recorded_nodes.dgx().write(tmp_path)
    seen = {(port.device, port.port, port.state, port.link_layer) for port in dgx.infiniband}
    assert seen == {
        (port.hca, port.number, port.state, port.link) for port in ports(Path(root) / "sys/class/infiniband")
    }


@pytest.mark.parametrize("pattern", ["mlx5_1", "=mlx5_1", "^mlx5_1:1", "mlx5_0:2,mlx5_3", "^=mlx5_4,mlx5_5:1", None])
@pytest.mark.parametrize("own", ["=mlx5_9", None])
def test_the_adapters_of_the_config_give_way_to_the_nodes_own_and_come_before_a_file(pattern, own, tmp_path):
    recorded = recorded_nodes.dgx()
    recorded.recorded["environment"] = {"NCCL_IB_HCA": own} if own else {}
    recorded.files["/etc/nccl.conf"] = "NCCL_IB_HCA=mlx5_4"
    *_, last = adapters.look_at_adapters(Node(recorded.write(tmp_path)), Quiet(), pattern)
    for port in last["infiniband"]:
        assert port["selected"] == select(own or pattern or "mlx5_4", port["device"], port["port"])


class Quiet:
    """Takes what a source reports besides what it finds."""

    def doing(self, what: str) -> None: ...
    def withheld(self, place: str, why: str) -> None: ...
    def failed(self, why: str, part: str = "") -> None: ...


SOURCES = (
    *(system.look_at_system, mounts.look_at_shm, interfaces.look_at_interfaces, pci.look_at_pci),
    *(nvidia.look_at_nvidia, nvidia.look_at_nvlinks, nvidia.look_at_fabric_manager, amd.look_at_amd),
    *(amd.look_at_amd_processes, kernel_log.look_at_kernel_log, processes.look_for_leftovers),
    lambda node, reporter: adapters.look_at_adapters(node, reporter, None),
    lambda node, reporter: mounts.look_at_path(node, reporter, "/home/ana", "data"),
)


@pytest.mark.parametrize(
    "make", [recorded_nodes.broken, recorded_nodes.roce, recorded_nodes.amd, recorded_nodes.ethernet]
)
def test_no_file_that_reads_otherwise_stops_a_source(make, tmp_path):
    """Kernels, drivers and containers differ in every file; none may cost what the others say."""
    whole = make()
    whole.tools.clear()  # what a tool says otherwise is no answer of the tool's
    source = random.Random(5)
    # One of each kind of file: one port's state and not twelve.
    files = {re.sub(r"[0-9a-f]*\d[0-9a-f:.]*", "0", name): name for name in sorted(whole.files)}
    whole.files = {name: whole.files[name] for name in files.values()}
    root = Path(whole.write(tmp_path))
    for name in whole.files:
        path = root / name.lstrip("/")
        before = path.read_bytes()
        path.write_bytes(source.choice([b"", b"\xff\xfe\0", b"-1\n", b"9" * 30, b": :\n::\n" * 9, b"a b c\n" * 20]))
        for look in SOURCES:
            NodeReport.from_message(merged(look(Node(str(root)), Quiet())))
        path.write_bytes(before)


def merged(found):
    document = {}
    with contextlib.suppress(ToolMissing):
        for part in found:
            document.update(part)
    return document


def test_what_the_kernel_said_before_then_is_left_out(tmp_path):
    node = recorded_nodes.RecordedNode(files={"/dev/kmsg": "4,1,3999999,-;Out of memory: old\n4,2,4000000,-;nfs: new"})
    recorded = Node(node.write(tmp_path))
    assert [line.partition("] ")[2] for line in kernel_log.kernel_records(recorded, 4.0)] == ["nfs: new"]
    assert len(list(kernel_log.kernel_records(recorded))) == 2
