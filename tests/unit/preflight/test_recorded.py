"""What the checks find on recorded machines: all of their faults, and nothing on healthy ones."""

from dataclasses import replace

import pytest

from allranks.cluster.node_report import NodeReport
from allranks.cluster.probe import ProbeRequest, probe_this_node
from allranks.preflight.check import Subject, Wanted
from allranks.preflight.effective import completed
from allranks.preflight.judge import judge
from tests import recorded_nodes
from tests.recorded_nodes import RecordedNode, adapter

WANTED = Wanted(nproc_per_node=4, device="cuda", backend="nccl", packages=())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory):
    """What a machine of this name reports; each is asked once."""
    known: dict[str, NodeReport] = {}

    def of(name: str) -> NodeReport:
        if name not in known:
            made = RECORDED[name]()
            root = made.write(tmp_path_factory.mktemp("recorded"))
            # What the machine that runs this test has installed is no part of the recorded one.
            known[name] = probe_this_node(ProbeRequest(root=root, deadline_seconds=60))
        return known[name]

    return of


def roce_of_version_1() -> RecordedNode:
    node = recorded_nodes.roce()
    wrong = dict.fromkeys(range(4), "IB/RoCE v1")
    adapter(node, "mlx5_bond_0", link="Ethernet", netdev="bond0", address="0a010015", types=wrong)
    return node


RECORDED = {
    "dgx": recorded_nodes.dgx,
    "roce": recorded_nodes.roce,
    "amd": recorded_nodes.amd,
    "ethernet": recorded_nodes.ethernet,
    "broken": recorded_nodes.broken,
    "roce of version 1": roce_of_version_1,
}


def judged(wanted: Wanted, **reports: NodeReport):
    """Each as a machine of its own, with addresses of its own."""
    named = {node: replace(one, host=node, interfaces=None, names=None) for node, one in reports.items()}
    return judge(Subject(named, starting=next(iter(named)), wanted=wanted))


@pytest.mark.parametrize("kind", ["dgx", "roce", "amd"])
@pytest.mark.parametrize("num_nodes", [1, 2, 5])
def test_recorded_machines_without_a_fault_have_none(kind, num_nodes, report):
    wanted = replace(WANTED, nproc_per_node=2) if kind == "amd" else WANTED
    result = judged(wanted, **{f"node{number}": report(kind) for number in range(num_nodes)})
    told = [
        (one.code, one.what) for one in result.findings("failed", "warned") if one.code.startswith(("fabric", "gpus"))
    ]
    assert told == []


@pytest.mark.parametrize("others", [1, 3])
def test_ten_faults_of_one_machine_are_found_and_no_others(others, report):
    healthy = {f"node{number}": report("dgx") for number in range(others)}
    result = judged(WANTED, **healthy, bad=report("broken"))
    of_bad = {
        (one.finding.code, one.state)
        for one in result.reported
        if "bad" in one.nodes and one.finding.code.startswith(("fabric", "gpus")) and one.state != "noted"
    }
    assert of_bad == {
        ("fabric.port-state", "failed"),  # mlx5_3, which NCCL_IB_HCA names
        ("fabric.rate", "warned"),
        ("fabric.link-layer", "failed"),
        ("fabric.peermem", "warned"),
        ("gpus.ecc", "failed"),
        ("gpus.throttled", "warned"),
        ("gpus.used", "failed"),
        ("gpus.pcie", "warned"),
        ("gpus.xid", "failed"),  # the eighth GPU, which is gone
        ("gpus.lost", "warned"),
    }
    told = " ".join(one.what for one in result.findings("failed", "warned"))
    for evidence in ("mlx5_3:1 (DOWN, Disabled)", "mlx5_4:1 at 200 Gb/s", "8 of 16 PCIe lanes", "Xid 79", "91 °C"):
        assert evidence in told
    assert "python3 -m allranks.train (pid 4242, of uid 1002)" in told


def test_a_gid_of_the_wrong_type_is_found(report):
    healthy = {f"node{number}": report("roce") for number in range(2)}
    result = judged(WANTED, **healthy, bad=report("roce of version 1"))
    (found,) = [one for one in result.reported if one.finding.code == "fabric.gid"]
    assert found.nodes == ("bad",) and found.state == "failed" and "IB/RoCE v1" in found.finding.what


def test_a_gpu_that_somebody_uses_is_found_on_amds_machine(report):
    result = judged(WANTED, node0=report("amd"), node1=report("amd"))
    (found,) = [one for one in result.reported if one.finding.code == "gpus.used"]
    assert "GPU 2: 68.7 GB of 206.2 GB are in use by python3 serve.py (pid 7001, of ana)" in found.finding.what


@pytest.mark.parametrize(("kinds", "device"), [(["ethernet"], "cpu"), (["ethernet", "dgx"], "cuda"), ([], None)])
def test_what_a_command_leaves_open_the_nodes_decide(kinds, device, report):
    wanted = completed(Wanted(), [None, *map(report, kinds)])
    assert wanted.device == device and wanted.uses_nccl == (device == "cuda")
    assert completed(Wanted(device="cpu"), [report("dgx")]).device == "cpu"


def test_a_machine_without_adapters_beside_others_is_found(report):
    result = judged(WANTED, node0=report("dgx"), node1=report("dgx"), node2=report("ethernet"))
    assert ("fabric.missing", ("node2",)) in {(one.finding.code, one.nodes) for one in result.reported}
    assert ("gpus.count", ("node2",)) in {(one.finding.code, one.nodes) for one in result.reported}
