"""The nodes of a plan: those that are named, or more of this machine, with what was measured of it."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from allranks.cluster.measure.children import AllReduce, DeviceMeasured
from allranks.cluster.measure.values import Link, Measurements
from allranks.errors import UsageError
from allranks.launch.plan.machines import Asked, machines_of
from allranks.launch.plan.make import _of_device
from allranks.launch.preflight.together import Judged
from allranks.observe import RunDir
from allranks.plan.calibration import Calibration
from allranks.plan.kept_calibration import keep
from allranks.preflight.judgement import Judgement
from allranks.preflight.measured_step import measured_link
from tests.planned import expected

PRODUCTS = ((64.0, 20e9), (512.0, 80e9))
MEASURED = Calibration(
    host=socket.gethostname(),
    device="cpu",
    products=PRODUCTS,
    small=((1e5, 40e9), (1e7, 10e9)),
    attention=((64.0, 10e9), (1024.0, 40e9)),
    call_seconds=50e-6,
    logits=((1e7, 6e9), (6e7, 4e9)),
    optimizer=9e9,
    kernel_seconds=5e-6,
    when=1.0,
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whose user has measured nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("allranks.launch.plan.machines.count_gpus", lambda: 0)


def test_without_a_gpu_it_is_this_cpu() -> None:
    machines, on_cpu = machines_of(Asked(gpus_per_node=2))
    assert on_cpu and machines.device.name == "cpu" and machines.ranks_per_node == 2
    assert machines.calibration is None


def test_what_was_measured_of_it_counts() -> None:
    keep(MEASURED)
    machines, _ = machines_of(Asked())
    assert machines.calibration == MEASURED
    named, on_cpu = machines_of(Asked(gpu="h100"))
    assert named.calibration is None and not on_cpu and named.ranks_per_node == 8


def test_another_machine_cannot_be_measured_from_here() -> None:
    with pytest.raises(UsageError, match="--calibrate measures this machine's own device"):
        machines_of(Asked(gpu="h100", calibrates=True))


def test_named_gpus_are_eight_a_node_and_the_link_is_told(tmp_path: Path) -> None:
    machines, on_cpu = machines_of(Asked(num_nodes=3, gpu="h100-80gb"), tmp_path)
    assert (machines.num_ranks, machines.link.bytes_per_second, on_cpu) == (24, 12.5e9, False)
    assert machines_of(Asked(gpu="l40s", gpus_per_node=2, link="8xib-ndr"))[0].link.ports == 8


def test_what_the_checks_have_measured_between_the_nodes_takes_the_place_of_a_guess(tmp_path: Path) -> None:
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
    of_nothing = {"bytes_per_second": 0, "latency_seconds": 0}
    for damaged in ({"t": 0, "link": {}}, {"t": 0, "link": of_nothing}, {"t": 1e30, "link": found}):
        (tmp_path / "preflight.json").write_text(json.dumps(damaged))
        assert machines_of(Asked(gpu="l40s"), tmp_path)[0].link.bytes_per_second == 12.5e9


@pytest.mark.parametrize(("spread", "is_told"), [(0.04, False), (0.35, True)])
def test_a_machine_whose_speed_is_not_its_own_is_told(spread: float, is_told: bool) -> None:
    keep(replace(MEASURED, spread=spread))
    machines, _ = machines_of(Asked())
    told = "\n".join(_of_device(machines, expected(1, 1, on_cpu=True).workload))
    assert ("its speed changed by 35% while it was measured" in told) is is_told
