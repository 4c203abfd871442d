"""Which of several nodes keeps the run's record."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from allranks.doctor.attempt import Ended
from allranks.launch.node import local
from allranks.launch.node.local import RunInputs, run_local
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.spec.program import engine
from allranks.observe import RunDir
from allranks.rendezvous import Participant


@dataclass
class Met:
    """A rendezvous where all are ready; node 0 knows what each starts."""

    own: Participant
    nodes: list[Participant]
    accounts: dict[int, dict] = field(default_factory=dict)
    world_size: int = 2

    def ready(self, account: dict) -> None:
        self.accounts = {} if self.own.node_rank else dict.fromkeys((0, 1), account)


@pytest.mark.parametrize("backend", ["static", "c10d"])
@pytest.mark.parametrize("rank", [0, 1])
def test_only_node_0_writes_it_where_the_nodes_have_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, rank: int
) -> None:
    monkeypatch.setattr(local, "supervise", lambda *_, **__: Ended(0, None, False))
    place = {"static": {"node_rank": rank, "master_addr": "h"}, "c10d": {"rdzv_endpoint": "h"}}[backend]
    launch = resolve(LaunchOptions(nnodes="2", rdzv_backend=backend, **place), num_gpus=0)
    nodes = [Participant(one, 2, 1, f"h{one}", 1, "torchrun", has_rank=backend == "static") for one in (0, 1)]
    node = Node(rank if backend == "static" else f"h{rank}", RunDir(tmp_path), "run", "launch", [])
    run_local(launch, engine(tmp_path / "c.yaml"), Peers(node, Met(nodes[rank], nodes)), RunInputs(["train"]))
    manifest = RunDir(tmp_path).manifest
    assert manifest.exists() == (rank == 0)
    if rank == 0:
        assert list(json.loads(manifest.read_text())["nodes"]) == (["0", "1"] if backend == "static" else ["h0", "h1"])


@pytest.mark.parametrize(("nnodes", "counted"), [("2", ("lo",)), ("1", ())])
def test_the_bytes_that_count_are_those_of_the_interfaces_of_the_ranks(
    tmp_path: Path, nnodes: str, counted: tuple[str, ...]
) -> None:
    place = {"node_rank": 0, "master_addr": "h"} if nnodes == "2" else {}
    launch = resolve(LaunchOptions(nnodes=nnodes, nproc_per_node=2, **place), num_gpus=0)
    peers = Peers(Node(0, RunDir(tmp_path), "run", "launch", []))
    live = local._watched(launch, peers, RunInputs([]), {"GLOO_SOCKET_IFNAME": "lo"})
    assert live._collector._interfaces == counted
