"""`allranks check` on real nodes: each fault is named with its node and remedy, and nothing starts."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import allranks
from tests.cluster.lab import Lab
from tests.cluster.training import Training, make_training

CHECK = (sys.executable, "-m", "allranks", "check", "c.yaml", "--nproc-per-node", 1, "--join-timeout", 20)
PORT = 29541
BY_HAND = (*CHECK, "--nnodes", 2, "--master-addr", "node0", "--master-port", PORT)
# Values of one node are shown on the others to nodes that know each other only.
TOKEN = {"ALLRANKS_TOKEN": "t" * 32}


@pytest.fixture
def checked(lab: Lab, base_config: dict) -> Training:
    """Model and data in a folder that all nodes share; the output directory is each node's own."""
    return make_training(lab, "check", base_config, output_dir="/root/run")


def by_hand(checked: Training, *words: object, only: dict[int, tuple] | None = None, **env: str) -> list[str]:
    """What two nodes print that were started by hand and are refused; `only`: words of one node."""
    more = only or {}
    started = [
        checked.start(rank, (*BY_HAND, "--node-rank", rank, *words, *more.get(rank, ())), **TOKEN, **env)
        for rank in (0, 1)
    ]
    return checked.finish(started, expect=[3, 3])


def from_node_0(checked: Training, *words: object, expect: int = 3) -> str:
    """What `--hosts` on node 0 prints."""
    command = (*CHECK, "--hosts", "node[0-1]", "--master-port", PORT, *words)
    (output,) = checked.finish([checked.start(0, command)], expect=[expect])
    return output


def test_healthy_nodes_pass_without_a_warning(lab: Lab, checked: Training) -> None:
    command = (*CHECK, "--hosts", "node[0-2]", "--json", "--write-hosts", "lists")
    (output,) = checked.finish([checked.start(0, command)])
    said = json.loads(output.splitlines()[-1])
    assert said["findings"] == [] and not said["refused"], said["findings"]
    assert said["hosts"] == said["nodes"] == said["passing"] == ["node0", "node1", "node2"]
    lists = {path.name: path.read_text() for path in (checked.config.parent / "lists").iterdir()}
    assert lists["passing"].split() == ["node0", "slots=1", "node1", "slots=1", "node2", "slots=1"]
    assert (lists["failing"], lists["slurm-exclude"]) == ("", "")
    assert lists["pbs-select"] == "1:host=node0+1:host=node1+1:host=node2\n"
    kept = json.loads(lab.node(0).run(["cat", "/root/run/preflight.json"], check=True).stdout)
    assert sorted(kept["reports"]) == ["node0", "node1", "node2"] and kept["findings"] == []


@dataclass(frozen=True)
class Fault:
    """What is wrong with node 1, and what both terminals must then say."""

    name: str
    check: str
    """The id of the check that finds it."""
    says: tuple[str, ...]
    arrange: Callable[[Lab], object] = lambda lab: None
    words: tuple[object, ...] = ()
    """Of node 1's command alone."""
    env: dict[str, str] = field(default_factory=dict)
    """The same of its environment."""
    prefix: tuple[object, ...] = ()


def _packages(name: str) -> Path:
    """The folder of an installed package's metadata."""
    return Path(str(importlib.metadata.distribution(name)._path))  # type: ignore[attr-defined]


def _other_version(lab: Lab) -> None:
    metadata = _packages("safetensors") / "METADATA"
    lab.node(1).write(metadata, metadata.read_text().replace("\nVersion: ", "\nVersion: 9.", 1))


def _other_code(lab: Lab) -> None:
    source = Path(allranks.__file__)
    lab.node(1).write(source, source.read_text() + "# changed here\n")


def _without(lab: Lab, *folders: Path) -> None:
    """Take folders away from node 1: nothing is left of what was in them."""
    lab.node(1).dirty = True
    for folder in folders:
        lab.node(1).run(["mount", "-t", "tmpfs", "none", folder], check=True)


def _clock(lab: Lab) -> None:
    """A namespace has no clock of its own: every Python of the node reads one that is two minutes behind."""
    file = Path(importlib.metadata.distribution("pytest").locate_file("zz_clock.pth"))
    lab.node(1).write(file, "import time; time.time = lambda own=time.time: own() - 120\n")


def _loopback_name(lab: Lab) -> None:
    """As Debian's installer writes it, and with it the other node's name."""
    lab.node(1).write("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 node1 node0\n10.77.0.1 head\n")


def _full_disk(lab: Lab) -> None:
    lab.node(1).run(["mkdir", "-p", "/root/run"], check=True)
    lab.node(1).fill_disk()


def _hanging_mount(lab: Lab) -> None:
    """A file system whose server took the connection and never answers."""
    program = (
        "import ctypes, os, time\n"
        "os.makedirs('/mnt/dead', exist_ok=True)\n"
        "fd = os.open('/dev/fuse', os.O_RDWR)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "options = f'fd={fd},rootmode=40000,user_id=0,group_id=0'.encode()\n"
        "assert libc.mount(b'dead', b'/mnt/dead', b'fuse', 0, options) == 0, os.strerror(ctypes.get_errno())\n"
        "print('mounted', flush=True)\n"
        "time.sleep(1000)\n"
    )
    node = lab.node(1)
    node.dirty = True
    server = node.popen([sys.executable, "-c", program])
    assert server.stdout.readline() == "mounted\n"


def _slow_tool(lab: Lab) -> None:
    lab.node(1).write("/usr/local/bin/nvidia-smi", "#!/bin/sh\nexec sleep 1000\n")
    lab.node(1).run(["chmod", "+x", "/usr/local/bin/nvidia-smi"], check=True)
