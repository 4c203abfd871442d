"""Launches that torchrun takes without a word, or answers with another one's: each is told on every terminal, and
nothing starts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.cluster.lab import Lab
from tests.cluster.moments import Terminal, record_fault
from tests.cluster.training import TOKEN, TRAIN, Training, make_training

PORT = 29541
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
NOWHERE = "nodezero"


def by_hand(rank: int, *, nnodes: int = 2, nproc: int = 1, address: str = "node0") -> tuple[object, ...]:
    place = ("--nnodes", nnodes, "--node-rank", rank, "--master-addr", address, "--master-port", PORT)
    return (*place, "--nproc-per-node", nproc)


def by_torchrun(rank: int, *more: object, nproc: int = 1) -> tuple[object, ...]:
    place = ("--node-rank", rank, "--master-addr", "node0", "--master-port", PORT, "--nproc-per-node", nproc)
    return (*place, *more, "-m", "allranks.train", "c.yaml")


def by_c10d(nnodes: int | str, endpoint: str, *more: object) -> tuple[object, ...]:
    return ("--nnodes", nnodes, "--rdzv-endpoint", f"{endpoint}:{PORT}", *more)


@dataclass(frozen=True)
class Launch:
    """What is typed on node 0, node 1, …, and a line that each of their terminals must then have."""

    name: str
    words: tuple[tuple[object, ...], ...]
    says: tuple[str, ...]
    cause: str
    node: str | None = None
    """Which node's word is not like the others', where one's is."""
    code: int = 3
    own_disks: bool = False
    """Whether the nodes' output directories are apart: else the nodes hear of each other there, too."""
    arrange: Callable[[Lab], object] = lambda lab: None
    command: tuple[str, ...] = TRAIN


ALONE = "start each with --nnodes N --node-rank R --master-addr HOST: without them each would train alone"
UNKNOWN = f"the name {NOWHERE} is not known on node1: name an address, or put it into /etc/hosts there"
DROPPED = f"a firewall there or on the way drops port {PORT}; open it from this node to node 0"
LINK = "eth0 of node1, which leads there, has no link: look at its cable"

LAUNCHES = (
    Launch("no --nnodes", ((), ()), (ALONE, ALONE), "nnodes"),
    Launch(
        "no --nnodes beside the rest of it",
        (("--node-rank", 0, "--master-addr", "node0"), ("--node-rank", 1, "--master-addr", "node0")),
        ("--node-rank and --master-addr without --nnodes: say how many nodes take part",) * 2,
        "nnodes",
        code=2,
    ),
    Launch(
        "--nnodes 2 and 3",
        (by_hand(0, nnodes=2), by_hand(1, nnodes=3)),
        ("--nnodes: 2 on node 0 (node0); 3 on node 1 (node1)",) * 2,
        "nnodes",
        "node1",
    ),
    Launch(
        "--nproc-per-node 1 and 2",
        (by_hand(0, nproc=1), by_hand(1, nproc=2)),
        ("the number of processes is not the same: 1 on node0 (here); 2 on node1 [start.processes]",) * 2,
        "start.processes",
        "node1",
    ),
    Launch(
        "node rank 0 twice",
        (by_hand(0), by_hand(0)),
        ("--node-rank 0 is taken by node0", "--node-rank 0 is taken by node0"),
        "node-rank",
        "node1",
        own_disks=True,
    ),
    Launch(
        "node rank 1 twice, of 3 nodes",
        (by_hand(0, nnodes=3), by_hand(1, nnodes=3), by_hand(1, nnodes=3)),
        ("--node-rank 1 is taken by node",) * 3,
        "node-rank",
        own_disks=True,
    ),
    Launch(
        "a master that does not resolve",
        (by_hand(0), by_hand(1, address=NOWHERE)),
        (UNKNOWN, UNKNOWN),
        "master-addr",
        "node1",
    ),
    Launch(
        "a master that resolves nowhere",
        (by_hand(0, address=NOWHERE), by_hand(1, address=NOWHERE)),
        (f"--master-addr {NOWHERE}: Name or service not known; give a name or an address of node 0", NOWHERE),
        "master-addr",
    ),
    Launch(
        "c10d, --nnodes 2 and 3",
        (by_c10d(2, "node0"), by_c10d(3, "node0")),
        ("--nnodes: 2 on node0 (pid",) * 2,
        "nnodes",
        "node1",
    ),
    Launch(
        "c10d, an endpoint that does not resolve",
        (by_c10d(2, NOWHERE), by_c10d(2, NOWHERE)),
        (f"the name {NOWHERE} is not known on node0", UNKNOWN),
        "rdzv-endpoint",
    ),
    Launch(
        "the master port dropped on its way in",
        (by_hand(0), by_hand(1)),
        (DROPPED, DROPPED),
        "master-port",
        "node1",
        arrange=lambda lab: lab.drop_port(0, PORT),
    ),
    Launch(
        "the master port dropped on its way back",
        (by_hand(0), by_hand(1)),
        (DROPPED, DROPPED),
        "master-port",
        "node1",
        arrange=lambda lab: lab.filter(0, "OUTPUT", "-p", "tcp", "--sport", str(PORT), "-j", "DROP"),
    ),
    Launch(
        "the link of node 1 down",
        (by_hand(0), by_hand(1)),
        (LINK, LINK),
        "link",
        "node1",
        arrange=lambda lab: lab.cut(1),
    ),
    # Under a torchrun of the user's own, whose exit code is 1 whatever a rank's is.
    Launch(
        "torchrun without --nnodes",
        (by_torchrun(0),),  # on node 1 torchrun waits for this one's, whatever becomes of it, and starts no rank
        ("torchrun was given --master-addr node0 and no --nnodes, which is then 1: each node would train alone",),
        "nnodes",
        code=1,
        command=TORCHRUN,
    ),
    Launch(
        "torchrun --nnodes 2 and 3",
        (by_torchrun(0, "--nnodes", 2), by_torchrun(1, "--nnodes", 3)),
        ('--nnodes of torchrun: "2" on rank 0 (node0); "3" on rank 1 (node1)',) * 2,
        "nnodes",
        "node1",
        code=1,
        command=TORCHRUN,
    ),
    Launch(
        "torchrun --nproc-per-node 1 and 2",
        (by_torchrun(0, "--nnodes", 2), by_torchrun(1, "--nnodes", 2, nproc=2)),
        ('--nproc-per-node of torchrun: "1" on rank 0 (node0); "2" on ranks 1, 2 (node1)',) * 2,
        "start.processes",
        "node1",
        code=1,
        command=TORCHRUN,
    ),
)
# One that shows the nodes' own channel, and one the folder that they share.
QUICK = ("node rank 0 twice", "a master that does not resolve")


def _case(launch: Launch) -> object:
    marks = () if launch.name in QUICK else (pytest.mark.thorough,)
    return pytest.param(launch, id=launch.name, marks=marks)


@pytest.mark.parametrize("launch", [_case(launch) for launch in LAUNCHES])
def test_a_launch_that_would_be_silent_is_told_on_every_terminal(
    lab: Lab,
    base_config: dict,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    launch: Launch,
) -> None:
    apart = {"output_dir": "/root/run"} if launch.own_disks else {}
    training = make_training(lab, request.node.name, base_config, **apart)
    launch.arrange(lab)
    terminals = []
    for node, words in enumerate(launch.words):
        last = time.time()
        terminals.append(Terminal(training.start(node, (*launch.command, *words), **TOKEN)))
    for terminal in terminals:
        terminal.finish()
    told = [terminal.moment_of(text) for terminal, text in zip(terminals, launch.says, strict=True)]
    record_fault(
        record_property,
        fault=launch.name,
        way="train",
        injected=last,
        told=told,
        cause=launch.cause,
        node=launch.node,
    )
    training.finish(terminals, expect=[launch.code] * len(terminals))
    assert None not in told, "\n---\n".join(terminal.output for terminal in terminals)
    assert launch.command == TORCHRUN or not _ranks_of(training, lab)
    assert not training.losses()


def _ranks_of(training: Training, lab: Lab) -> list[str]:
    """What tells that a rank was started."""
    found = [str(path) for path in training.run.all_events()]
    for node in lab.nodes:
        found += node.run(["find", "/root/run", "-name", "rank-*"]).stdout.split()
    return found
