"""The nodes that a plan is for."""

import json

import pytest

from allranks.cluster.measure.children import AllReduce, DeviceMeasured
from allranks.cluster.measure.values import Link, Measurements
from allranks.errors import UsageError
from allranks.launch.plan.machines import Asked, machines_of
from allranks.launch.preflight.together import Judged
from allranks.observe import RunDir
from allranks.preflight.judgement import Judgement
from allranks.preflight.measured_step import measured_link


def test_named_gpus_are_eight_a_node_and_the_link_is_told(tmp_path):
    machines, on_cpu = machines_of(Asked(num_nodes=3, gpu="h100-80gb"), tmp_path)
    assert (machines.num_ranks, machines.link.bytes_per_second, on_cpu) == (24, 12.5e9, False)
    assert machines_of(Asked(gpu="l40s", gpus_per_node=2, link="8xib-ndr"))[0].link.ports == 8


def test_without_a_gpu_the_ranks_share_this_machines_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (one, on_cpu), (two, _) = machines_of(Asked()), machines_of(Asked(gpus_per_node=2))
    assert on_cpu and one.ranks_per_node == 1
    assert two.device.memory_bytes == pytest.approx(one.device.memory_bytes / 2)


def test_only_this_machines_own_device_is_measured():
    with pytest.raises(UsageError, match="leave out --gpu"):
        machines_of(Asked(gpu="h100-80gb", calibrates=True))


def test_what_the_checks_have_measured_between_the_nodes_takes_the_place_of_a_guess(tmp_path):
    links = [Link("a", "b", latency_seconds=2e-5, bytes_per_second=3e9), Link("b", "a", bytes_per_second=4e9)]
    reduced = DeviceMeasured(0, "cpu", all_reduces=[AllReduce(2**25, 2**25 / 1e9, True)], done=True)
    measured = Measurements(links, {"a": [reduced]}, world_size=2)
    found = measured_link(measured)
    assert found == {"bytes_per_second": pytest.approx(1e9), "latency_seconds": 2e-5}
    assert measured_link(None) == measured_link(Measurements()) == {}
    judgement = Judgement(("a", "b"), "a", (), ())
    Judged(judgement, ["a", "b"], 1.0, reports={"a": {}}, link=found).keep(RunDir(tmp_path))
    machines, _ = machines_of(Asked(num_nodes=2, gpu="l40s"), tmp_path)
    assert machines.link.bytes_per_second == pytest.approx(1e9) and "allranks check" in machines.link.title
    assert machines_of(Asked(num_nodes=2, gpu="l40s", link="25gbit"), tmp_path)[0].link.name == "25gbit"
    (tmp_path / "preflight.json").write_text(json.dumps({"t": 0, "link": {}}))
    assert machines_of(Asked(gpu="l40s"), tmp_path)[0].link.bytes_per_second == 12.5e9
