"""What is interrupted, killed or cut off: every node's ranks end, and the last message says what happened.

Most is thorough: test_launch.py shows it with two nodes of this machine, by hand, and test_ssh.py of heads and nodes.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import Lab
from tests.cluster.training import GONE_AFTER_SECONDS, Training, make_training

ENDLESS = {"max_steps": 100_000, "num_epochs": 1000, "lr_scheduler": "constant"}
TRAIN = (sys.executable, "-m", "allranks", "train", "c.yaml")
BY_HAND = (*TRAIN, "--master-addr", "node0", "--master-port", 29518)


# Writes its process id down before it becomes the command: what salloc starts is not salloc.
NOTED = ("sh", "-c", 'echo $$ >head.pid; exec "$@"', "sh")


def start_by_hand(training: Training, num_nodes: int) -> list[Any]:
    words = [(*BY_HAND, "--nnodes", num_nodes, "--node-rank", rank) for rank in range(num_nodes)]
    return [training.start(rank, (*(NOTED if rank == 0 else ()), *each)) for rank, each in enumerate(words)]


def start_over_ssh(training: Training, num_nodes: int) -> list[Any]:
    return [training.start(0, (*NOTED, *TRAIN, "--hosts", f"node[0-{num_nodes - 1}]"))]


def start_in_slurm(training: Training, num_nodes: int) -> list[Any]:
    training.lab.slurm()
    return [training.start(0, ("salloc", "-Q", "-N", num_nodes, *NOTED, *TRAIN))]


WAYS: dict[str, Callable[[Training, int], list[Any]]] = {
    "by hand": start_by_hand,
    "ssh": start_over_ssh,
    "slurm": start_in_slurm,
}


def signal_head(training: Training, signum: signal.Signals) -> None:
    pid = (training.config.parent / "head.pid").read_text().strip()
    training.lab.node(0).run(["kill", f"-{int(signum)}", pid], check=True)


@pytest.fixture
def num_nodes() -> int:
    return 2


@pytest.fixture(params=WAYS)
def running(request: pytest.FixtureRequest, lab: Lab, base_config: dict, num_nodes: int) -> tuple[Training, list[Any]]:
    """A training on several nodes that would not end, at its third step; and the commands that started it."""
    training = make_training(lab, request.node.name, base_config, **ENDLESS)
    processes = WAYS[request.param](training, num_nodes)
    training.wait_for_step(3, processes[0])
    assert len(training.processes()) == num_nodes
    if request.param != "by hand":
        assert_only_launchers_know_the_token(training, num_nodes)
    return training, processes


def assert_only_launchers_know_the_token(training: Training, num_nodes: int) -> None:
    """One token for all nodes: in the environment that each launcher was given, in no command line, rank or file."""
    launchers, words, known = set(), b"", {}
    for node in training.processes().values():
        for process in node:
            folder = Path(f"/proc/{process.pid}")
            words += (folder / "cmdline").read_bytes()
            for line in (folder / "environ").read_bytes().split(b"\0"):
                if line.startswith(b"ALLRANKS_TOKEN="):
                    known[process.pid] = line.partition(b"=")[2]
                    launchers.add(process.argv[2:5])
    (token,) = set(known.values())
    assert len(known) == num_nodes and len(bytes.fromhex(token.decode())) == 32, known
    assert launchers == {("-m", "allranks", "train")}, launchers
    assert token not in words
    assert not [path for path in training.config.parent.rglob("*") if path.is_file() and token in path.read_bytes()]


def output_of(process: Any) -> str:
    return process.communicate(timeout=GONE_AFTER_SECONDS)[0]


@pytest.mark.parametrize(
    "signum",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)],
    ids=lambda signum: signum.name,
)
@pytest.mark.parametrize(
    "running", [pytest.param(way, marks=[] if way == "ssh" else pytest.mark.thorough) for way in WAYS], indirect=True
)
def test_a_signal_to_the_head_saves_and_ends_all(running: tuple[Training, list[Any]], signum: signal.Signals) -> None:
    training, processes = running
    signal_head(training, signum)
    outputs = [output_of(process) for process in processes]
    assert [process.returncode for process in processes] == [75] * len(processes), outputs
    assert "saved" in outputs[0]
    assert len(list(training.run.checkpoints.glob("step-*/COMPLETE"))) == 1
    training.wait_until_gone()


@pytest.mark.thorough
def test_a_killed_head_leaves_nothing(running: tuple[Training, list[Any]]) -> None:
    training, processes = running
    signal_head(training, signal.SIGKILL)
    training.wait_until_gone()
    for process in processes[1:]:
        output = output_of(process)
        assert process.returncode == 1, output
        assert "node 0 (node0) was lost: the connection was closed" in output


@pytest.mark.parametrize("num_nodes", [3])
@pytest.mark.thorough
@pytest.mark.parametrize("how", ["kill", "power_off"])
def test_a_lost_node_ends_the_others_and_is_named(running: tuple[Training, list[Any]], lab: Lab, how: str) -> None:
    training, processes = running
    getattr(lab, how)(2)
    training.wait_until_gone()
    for process in processes[:2]:
        output = output_of(process)
        assert process.returncode == 1, output
        [*_, last] = [line for line in output.splitlines() if line.startswith("error: ")]
        assert "node2" in last and "was lost" in last, output
