"""The nodes of a plan: those that are named, or more of this machine, with what was measured of it."""

import socket
from pathlib import Path

import pytest

from allranks.errors import UsageError
from allranks.launch.plan.machines import Asked, machines_of
from allranks.plan.calibration import Calibration, keep

PRODUCTS = ((64.0, 20e9), (512.0, 80e9))
MEASURED = Calibration(
    host=socket.gethostname(),
    device="cpu",
    products=PRODUCTS,
    small=((1e5, 40e9), (1e7, 10e9)),
    attention=30e9,
    logits=6e9,
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
