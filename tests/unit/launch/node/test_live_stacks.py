"""`allranks stacks` asks node 0's launcher, and that all nodes: real sockets, threads, and ranks that really hang."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from allranks.evidence.requests import Request, RequestFolder, requests_folder
from allranks.launch.node import live_stacks
from allranks.launch.node.live import LiveNode
from allranks.launch.node.live_stacks import StacksRequests
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.observe import RunDir
from allranks.rendezvous import Rendezvous
from tests.unit.evidence.hanging_ranks import THIS_RUN, hanging
from tests.unit.evidence.test_gather import _skips
from tests.unit.rendezvous.nodes import Nodes, join_all, node_of, until


@pytest.fixture
def joined() -> Iterator[list[Rendezvous]]:
    nodes = Nodes()
    yield join_all(nodes, node_of(0), node_of(1))
    nodes.leave()


def peers_of(folder: Path, rank: int, rendezvous: Rendezvous | None) -> Peers:
    run = RunDir(folder / f"disk{rank}")
    run.path.mkdir(exist_ok=True)
    return Peers(Node(rank, run, THIS_RUN, f"launch {rank}", []), rendezvous)


def watch(peers: Peers, said: list[str], pid: int) -> LiveNode:
    live = LiveNode(peers, limits=None, ends=True, num_gpus=0, say=said.append)
    live.seen([psutil.Process(pid)])
    return live


def test_ranks_of_nodes_with_disks_of_their_own_are_folded_and_the_run_goes_on(
    tmp_path: Path, joined: list[Rendezvous]
) -> None:
    said: list[str] = []
    with hanging(_skips, tmp_path, num_ranks=2, launch="launch {rank}") as pids:
        peers = [peers_of(tmp_path, rank, one) for rank, one in enumerate(joined)]
        with watch(peers[0], said, pids[0]), watch(peers[1], said, pids[1]):
            run = peers[0].node.run
            until(lambda: run.live.exists() and requests_folder(run.path).exists())
            command = [sys.executable, "-m", "allranks", "stacks", str(run.path), "--seconds", "20"]
            shown = subprocess.run(command, capture_output=True, text=True)
            told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True).stdout)
            assert not requests_folder(peers[1].node.run.path).exists()
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert [line for line in lines if line.startswith("rank")] == ["rank 0:", "rank 1:"]
    assert lines[-1].startswith("at this moment: rank 1 never entered all_reduce of 4 float")
    assert [(one["rank"], one["node"], one["pid"]) for one in told["ranks"]] == [(0, 0, pids[0]), (1, 1, pids[1])]
    assert told["silent"] == []
    assert said == []
    assert [one.stop_finding() for one in joined] == [None, None]
    assert not (run.path / "evidence").exists()


def test_a_node_that_does_not_answer_is_named(
    tmp_path: Path, joined: list[Rendezvous], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STARTING_SECONDS", "_WAY_SECONDS"):
        monkeypatch.setattr(live_stacks, name, 0.0)
    asking = StacksRequests(peers_of(tmp_path, 0, joined[0]))  # and nobody answers: no node looks
    assert asking._told([Request("0" * 32, 1.0)]) == ([], ["node 0 (host0)", "node 1 (host1)"])


def test_one_node_alone_answers_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = threading.Semaphore(1)

    def gather(path: Path, **how: object) -> dict[str, object]:
        assert at_once.acquire(blocking=False)  # one look at a time
        at_once.release()
        return {"node": how["node"], "ranks": [], "keep": how["keep"], "run_id": how["run_id"]}

    monkeypatch.setattr(live_stacks, "gather_node", gather)
    peers = peers_of(tmp_path, 0, None)
    folder = RequestFolder(peers.node.run.path)
    folder.take()
    names = [f"{number:032x}" for number in range(3)]
    for name in names:
        (requests_folder(peers.node.run.path) / f"{name}.json").write_text('{"version": 1, "seconds": 5}')
    asking = StacksRequests(peers)
    asking.start()
    answers = [requests_folder(peers.node.run.path) / f"{name}.answer" for name in names]
    until(lambda: all(path.exists() for path in answers))
    asking.close()
    asking.join()
    (summary,) = json.loads(answers[0].read_text())["summaries"]
    assert summary == {"node": 0, "ranks": [], "keep": False, "run_id": THIS_RUN}


@pytest.mark.parametrize("question", [None, 5, "x", [], {}, {"seconds": "5"}, {"seconds": 0}, {"seconds": 1e9}])
def test_a_node_answers_no_other_question(tmp_path: Path, question: object) -> None:
    assert live_stacks._answer(peers_of(tmp_path, 0, None), question) is None
