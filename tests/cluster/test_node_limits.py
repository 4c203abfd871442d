"""Limits that matter where NCCL and InfiniBand are used: the lab's nodes show a recorded adapter and two recorded GPUs,
and one of them really has the limit. `allranks check` over ssh finds that node."""

from __future__ import annotations

import importlib.util
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.lab.node import Node
from tests.cluster.moments import Terminal, record_fault
from tests.cluster.training import make_training
from tests.recorded_nodes import H100S, RecordedNode, adapter, nvidia_gpus

CHECK = (
    sys.executable,
    "-m",
    "allranks",
    "check",
    "c.yaml",
    "--quick",
    "--nproc-per-node",
    2,
    "--export",
    "CUDA_VISIBLE_DEVICES",
)
# What the driver's library says of two GPUs, for those who count them.
NVML = f"""
from types import SimpleNamespace
class NVMLError(Exception): pass
nvmlInit = nvmlShutdown = lambda: None
nvmlDeviceGetCount = lambda: 2
nvmlDeviceGetHandleByIndex = lambda index: index
nvmlDeviceGetName = lambda handle: {H100S[0].model!r}
nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(total={H100S[0].memory} * 2**20, used=0, free=0)
"""


def show_gpus_and_infiniband(node: Node, files: Path) -> None:
    """Lay the recorded machine over this node, as far as the kernel and the tools tell of it."""
    node.run(
        ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={files}/sys/class:/sys/class", "/sys/class"], check=True
    )
    node.write("/usr/local/bin/nvidia-smi", (files / "bin/nvidia-smi").read_text())
    node.run(["chmod", "+x", "/usr/local/bin/nvidia-smi"], check=True)
    library = importlib.util.find_spec("pynvml")
    assert library is not None and library.origin is not None
    node.write(library.origin, NVML)


def little_locked_memory(node: Node) -> None:
    """For what sshd starts; root is held to it where it is root of a container."""
    node.write("/run/.containerenv", "")
    (sshd, *_) = node.run(["pgrep", "-o", "-x", "sshd"], check=True).stdout.split()
    node.run(["prlimit", "--pid", sshd, "--memlock=65536:65536"], check=True)


def little_shared_memory(node: Node) -> None:
    """As Docker has it."""
    node.run(["mount", "-o", "remount,size=64m", "/dev/shm"], check=True)


LIMITS = {
    "limits.memlock": (
        little_locked_memory,
        "a process may lock 65.5 kB of memory (ulimit -l)",
        "LimitMEMLOCK=infinity",
    ),
    "limits.shm": (little_shared_memory, "/dev/shm has 67.1 MB", "--shm-size=8g"),
}


NODES = {"limits.memlock": ("--hosts", "node[0-1]"), "limits.shm": ("--hostfile", "hosts")}


@pytest.mark.thorough
@pytest.mark.parametrize("check", LIMITS)
def test_a_real_limit_of_one_node_is_found_over_ssh(
    lab: Lab,
    base_config: dict,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    check: str,
) -> None:
    training = make_training(lab, request.node.name, base_config, output_dir="/root/run")
    recorded = RecordedNode()
    adapter(recorded, "mlx5_0")
    nvidia_gpus(recorded, H100S[:2])
    (training.config.parent / "hosts").write_text("node0 slots=2\nnode1 slots=2\n")
    files = Path(recorded.write(training.config.parent / "recorded"))
    for node in lab.nodes[:2]:
        show_gpus_and_infiniband(node, files)
    limit, says, remedy = LIMITS[check]
    limit(lab.node(1))
    started = time.time()
    terminal = Terminal(training.start(0, (*CHECK, *NODES[check]), CUDA_VISIBLE_DEVICES="0,1"))
    output = terminal.finish()
    told = terminal.moment_of(f"node1: {says} [{check}]")
    record_fault(
        record_property,
        fault=check,
        way="check",
        injected=started,
        told=[told],
        cause=check,
        node="node1",
    )
    training.finish([terminal], expect=[3])
    about = [line for line in output.splitlines() if f"[{check}]" in line and line.startswith("error: ")]
    if check == "limits.memlock" and 0 <= resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] < 2**30:
        about = about[-1:]  # this machine is itself a container with little of it: node 0 is named before
    assert about == [f"error: node1: {says} [{check}]"] and remedy in output, output
    assert "nothing was started" in output
