"""Nodes that watch their ranks together: real sockets, threads and processes; the ranks' events are written here."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from allranks.doctor.causes import HANG
from allranks.findings import Finding
from allranks.launch.node.live import LiveNode
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.live.deadlines import Limits
from allranks.live.from_events import read_live
from allranks.live.state import LiveTable
from allranks.observe import EventLog, RunDir
from allranks.observe.events import PhaseEvent, StepEvent
from allranks.rendezvous import Rendezvous
from tests.unit.rendezvous.nodes import Nodes, join_all, node_of, until

PATIENT = Limits()
# A rank of these tests writes no events any more: as soon as all nodes are known, it hangs.
AT_ONCE = Limits(step=0.0, num_medians=0.0)


@pytest.fixture
def joined() -> Iterator[list[Rendezvous]]:
    nodes = Nodes()
    yield join_all(nodes, node_of(0), node_of(1))
    nodes.leave()


@pytest.fixture
def processes() -> Iterator[list[psutil.Process]]:
    """Two that wait, with the environment of ranks."""
    command = [sys.executable, "-c", "input()"]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "RANK": str(rank)}) for rank in range(2)
    ]
    yield [psutil.Process(one.pid) for one in started]
    for one in started:
        one.communicate(b"\n")


class Watched:
    """Two nodes, each with a disk of its own and a rank that has made `steps` steps."""

    def __init__(self, folder: Path, joined: list[Rendezvous], steps: list[int], limits: Limits, ends: bool = True):
        self.said: list[str] = []
        self.runs = [RunDir(folder / f"disk{rank}") for rank in range(2)]
        self.logs = []
        self.nodes = []
        for rank, (run, rendezvous) in enumerate(zip(self.runs, joined, strict=True)):
            peers = Peers(Node(rank, run, "a run", f"launch {rank}", []), rendezvous)
            live = LiveNode(peers, limits=limits if rank == 0 else None, ends=ends, num_gpus=0, say=self.said.append)
            self.nodes.append(live)
            log = EventLog(run.events(rank), rank, run_id="a run")
            log.write(PhaseEvent(phase="train", pid=100 + rank, num_steps=10))
            for step in range(1, steps[rank] + 1):
                log.write(StepEvent(step=step, loss=1.0, tokens=10, seconds=1.0))
            self.logs.append(log)

    def begin(self, processes: list[psutil.Process]) -> None:
        for live, process in zip(self.nodes, processes, strict=True):
            live.seen([process])
            live.__enter__()

    def end(self) -> None:
        for live in self.nodes:
            live.__exit__()

    @property
    def table(self) -> LiveTable:
        return read_live(self.runs[0]) or LiveTable()


def test_node_0_keeps_the_table_of_all_ranks(
    tmp_path: Path, joined: list[Rendezvous], processes: list[psutil.Process]
) -> None:
    watched = Watched(tmp_path, joined, [4, 3], PATIENT)
    watched.begin(processes)
    expected = [(0, processes[0].pid, 4, "S"), (1, processes[1].pid, 3, "S")]
    until(lambda: [(one.rank, one.pid, one.step, one.process_state) for one in watched.table.ranks] == expected)
    assert (watched.table.run_id, watched.table.step, watched.table.num_steps) == ("a run", 3, 10)
    watched.logs[1].write(StepEvent(step=4, loss=1.0, tokens=10, seconds=1.0))
    until(lambda: watched.table.step == 4)
    assert not watched.runs[1].live.exists()
    # Of the process that writes the table: whoever looks later asks whether that is alive, and not torchrun's agent.
    assert [one.launcher_pid for one in watched.table.nodes] == [os.getpid()] * 2
    watched.logs[1].write(StepEvent(step=5, loss=1.0, tokens=10, seconds=1.0))
    watched.nodes[1].__exit__()  # what it has seen last it tells
    until(lambda: watched.table.ranks[1].step == 5)
    watched.nodes[0].__exit__()
    assert watched.said == []
    assert [one.stop_finding() for one in joined] == [None, None]


def test_a_run_that_hangs_is_ended_on_all_nodes_with_the_rank_that_is_behind(
    tmp_path: Path, joined: list[Rendezvous], processes: list[psutil.Process]
) -> None:
    watched = Watched(tmp_path, joined, [4, 3], PATIENT)
    watched.begin(processes)
    until(lambda: len(watched.table.ranks) == 2)
    keeper = watched.nodes[0]._keeper
    assert keeper is not None
    keeper._limits = AT_ONCE
    until(lambda: all(one.stop_finding() for one in joined))
    for one in joined:
        finding = one.stop_finding()
        assert isinstance(finding, Finding)
        assert (finding.code, finding.who.rank, finding.who.node) == (HANG, 1, 1)
        assert "rank 1 (node 1" in finding.what
    watched.end()
    assert [found.who.rank for found in watched.table.overdue] == [1]


def test_a_run_that_is_to_go_on_is_only_told_of_and_told_when_it_does(
    tmp_path: Path, joined: list[Rendezvous], processes: list[psutil.Process]
) -> None:
    watched = Watched(tmp_path, joined, [4, 4], AT_ONCE, ends=False)
    watched.begin(processes)
    until(lambda: watched.said)
    assert watched.said[0].startswith("error: rank")
    assert "hang_timeout" in watched.said[0]
    keeper = watched.nodes[0]._keeper
    assert keeper is not None
    keeper._limits = PATIENT
    until(lambda: len(watched.said) > 1)
    assert watched.said[1:] == ["the ranks that seemed to hang go on"]
    assert [one.stop_finding() for one in joined] == [None, None]
    watched.end()


def test_a_node_alone_ends_its_own_run(tmp_path: Path, processes: list[psutil.Process]) -> None:
    run = RunDir(tmp_path)
    log = EventLog(run.events(0), 0, run_id="a run")
    live = LiveNode(Peers(Node(0, run, "a run", "launch", [])), limits=AT_ONCE, ends=True, num_gpus=0, say=pytest.fail)
    with live:
        live.seen(processes[:1])
        log.write(PhaseEvent(phase="train", pid=3))
        log.write(StepEvent(step=1, seconds=1.0))
        until(live.hang)
    finding = live.hang()
    assert finding is not None
    assert (finding.code, finding.who.rank) == (HANG, 0)


def test_hostile_states_cost_the_table_nothing(
    tmp_path: Path, joined: list[Rendezvous], processes: list[psutil.Process]
) -> None:
    watched = Watched(tmp_path, joined, [1, 1], PATIENT)
    watched.nodes[0].__enter__()
    for payload in (
        None,
        3,
        [],
        {"node": True},
        {"node": 0, "host": "other"},
        {"node": 1, "t": 1e308, "ranks": [{"rank": 2**70}, {"rank": "x"}, 7]},
    ):
        joined[1].tell("state", payload)
        until(lambda: joined[1]._to_tell == {})
    watched.nodes[0].seen(processes[:1])
    until(lambda: len(watched.table.ranks) == 1)
    assert watched.said == []
    watched.nodes[0].__exit__()
