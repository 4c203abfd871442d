"""What is interrupted, killed or cut off: every node's ranks end, and the last message says what happened.

Most is thorough: test_launch.py shows it with two nodes of this machine, by hand, and test_ssh.py of heads and nodes.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from allranks.doctor import causes
from tests.cluster.lab import Lab
from tests.cluster.moments import Terminal, record_failure
from tests.cluster.training import GONE_AFTER_SECONDS, TRAIN, Training, make_training

ENDLESS = {"max_steps": 100_000, "num_epochs": 1000, "lr_scheduler": "constant"}
BY_HAND = (*TRAIN, "--master-addr", "node0", "--master-port", 29518)


# Writes its process id down before it becomes the command: what salloc starts is not salloc.
NOTED = ("sh", "-c", 'echo $$ >head.pid; exec "$@"', "sh")


def start_by_hand(training: Training, num_nodes: int) -> list[Terminal]:
    words = [(*BY_HAND, "--nnodes", num_nodes, "--node-rank", rank) for rank in range(num_nodes)]
    return [Terminal(training.start(rank, (*(NOTED if rank == 0 else ()), *each))) for rank, each in enumerate(words)]


def start_over_ssh(training: Training, num_nodes: int) -> list[Terminal]:
    return [Terminal(training.start(0, (*NOTED, *TRAIN, "--hosts", f"node[0-{num_nodes - 1}]")))]


def start_in_slurm(training: Training, num_nodes: int) -> list[Terminal]:
    training.lab.slurm()
    return [Terminal(training.start(0, ("salloc", "-Q", "-N", num_nodes, *NOTED, *TRAIN)))]


WAYS: dict[str, Callable[[Training, int], list[Terminal]]] = {
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
def running(
    request: pytest.FixtureRequest, lab: Lab, base_config: dict, num_nodes: int
) -> tuple[Training, list[Terminal]]:
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


def output_of(process: Terminal) -> str:
    return process.finish(GONE_AFTER_SECONDS)


@pytest.mark.parametrize(
    "signum",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)],
    ids=lambda signum: signum.name,
)
@pytest.mark.parametrize(
    "running", [pytest.param(way, marks=[] if way == "ssh" else pytest.mark.thorough) for way in WAYS], indirect=True
)
def test_a_signal_to_the_head_saves_and_ends_all(
    running: tuple[Training, list[Terminal]], signum: signal.Signals
) -> None:
    training, processes = running
    signal_head(training, signum)
    outputs = [output_of(process) for process in processes]
    assert [process.returncode for process in processes] == [75] * len(processes), outputs
    assert "saved" in outputs[0]
    assert len(list(training.run.checkpoints.glob("step-*/COMPLETE"))) == 1
    training.wait_until_gone()


@pytest.mark.thorough
def test_a_killed_head_leaves_nothing(
    running: tuple[Training, list[Terminal]], record_property: Callable[[str, object], None]
) -> None:
    training, processes = running
    injected = time.time()
    signal_head(training, signal.SIGKILL)
    training.wait_until_gone()
    outputs = [output_of(process) for process in processes]
    if others := processes[1:]:  # those whose terminal is not the head's
        said = "node 0 (node0) was lost: the connection was closed"
        told = record_failure(record_property, training.run.path, others, said, fault="head killed", injected=injected)
        assert [process.returncode for process in others] == [1] * len(others), outputs
        assert all(said in output for output in outputs[1:]), outputs
        assert (told.cause, told.certainty, told.node) == (causes.NODE_LOST, "sure", "node0"), told


@pytest.mark.parametrize("num_nodes", [3])
@pytest.mark.thorough
@pytest.mark.parametrize("how", ["kill", "power_off"])
def test_a_lost_node_ends_the_others_and_is_named(
    running: tuple[Training, list[Terminal]], lab: Lab, how: str, record_property: Callable[[str, object], None]
) -> None:
    training, processes = running
    injected = time.time()
    getattr(lab, how)(2)
    training.wait_until_gone()
    outputs = [output_of(process) for process in processes[:2]]
    # Whose power is off says nothing more: that is noticed when it has been silent for long enough.
    told = record_failure(
        record_property,
        training.run.path,
        processes[:2],
        "error: node 2 (node2) was lost",
        fault=f"node lost ({how})",
        injected=injected,
        deadline=10 if how == "power_off" else 0,
    )
    for process, output in zip(processes, outputs, strict=False):
        assert process.returncode == 1, output
        [*_, last] = [line for line in output.splitlines() if line.startswith("error: ")]
        assert "node2" in last and "was lost" in last, output
    assert (told.cause, told.node) == (causes.NODE_LOST, "node2"), told
