"""Nodes that watch their ranks together: real sockets, threads and processes; the ranks' events are written here."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from allranks.doctor.causes import HANG
from allranks.findings import Evidence, Finding
from allranks.launch.node.live import LiveNode
from allranks.launch.node.live_evidence import _without_contradiction
from allranks.launch.node.live_table import LiveTableKeeper
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.live.deadlines import NONE_BEHIND, Limits, overdue
from allranks.live.from_events import read_live
from allranks.live.state import LiveTable, NodeState, RankState
from allranks.observe import EventLog, RunDir
from allranks.observe.events import PhaseEvent, StepEvent
from allranks.rendezvous import Rendezvous
from tests.patience import TIMEOUT_SECONDS
from tests.unit.rendezvous.nodes import Nodes, join_all, node_of, until

PATIENT = Limits()
HANGING = NodeState(
    node=0,
    t=time.time(),
    ranks=tuple(
        RankState(rank=rank, phase="train", step=4, since=time.time() - 5, process_state="S") for rank in (0, 1)
    ),
)
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
    found = [psutil.Process(one.pid) for one in started]
    until(lambda: all(one.environ() for one in found))  # for a moment after a program has begun it is empty
    yield found
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


def test_steps_are_a_sign_of_life_of_all_nodes_if_they_are_of_now(
    tmp_path: Path, joined: list[Rendezvous], processes: list[psutil.Process]
) -> None:
    peers = Peers(Node(1, RunDir(tmp_path), "a run", "launch", []), joined[1])
    live = LiveNode(peers, limits=None, ends=True, num_gpus=0, say=pytest.fail)
    live.seen([processes[1]])
    signs, events = joined[1].signs_of_life, RunDir(tmp_path).events(1)
    log = EventLog(events, 1, run_id="a run")
    with events.open("a") as file:
        long_ago = {"t": time.time() - 100, "rank": 1, "kind": "step", "run": "a run", "step": 2, "seconds": 1.0}
        file.write(json.dumps(long_ago) + "\n")
    live._collect()
    assert signs.is_lost("node 0", heard=0.0, limit=60.0)
    log.write(StepEvent(step=3, loss=1.0, tokens=10, seconds=1.0))
    live._collect()
    assert not signs.is_lost("node 0", heard=0.0, limit=60.0)


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


def test_where_all_are_to_start_again_every_node_knows_before_its_ranks_are_ended(
    tmp_path: Path, joined: list[Rendezvous]
) -> None:
    asked: list[tuple[Finding, LiveTable]] = []

    def third(hang: Finding, table: LiveTable) -> int | None:
        asked.append((hang, table))
        return 3

    of_nodes = [Peers(Node(rank, RunDir(tmp_path), "a run", "launch", []), one) for rank, one in enumerate(joined)]
    keeper = LiveTableKeeper(
        of_nodes[0], limits=AT_ONCE, ends=True, say=pytest.fail, explain=lambda *told: told[1][0], after_hang=third
    )
    assert [one.restarts for one in of_nodes] == [None, None]
    joined[0].tell("state", HANGING.to_message())
    until(lambda: keeper.look({}) or joined[1].stop_finding())
    assert [one.restarts for one in of_nodes] == [3, 3]
    assert [one.restarts for one in of_nodes] == [3, 3], "also when it is asked again"
    ((hang, table),) = asked
    assert (hang.code, table.step) == (HANG, 4)
    keeper.close()


def test_a_run_that_fails_of_something_else_is_not_started_again(tmp_path: Path, joined: list[Rendezvous]) -> None:
    peers = Peers(Node(0, RunDir(tmp_path), "a run", "launch", []), joined[0])
    asked: list[object] = []
    keeper = LiveTableKeeper(
        peers, limits=AT_ONCE, ends=True, say=pytest.fail, explain=lambda *told: told[1][0], after_hang=asked.append
    )
    joined[1]._tell_failure(Finding("rank-error", "its data is broken"))
    until(joined[0].stop_finding)
    joined[0].tell("state", HANGING.to_message())
    until(lambda: keeper.look({}) or keeper.hang)
    assert (asked, peers.restarts) == ([], None)
    keeper.close()


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


def test_a_fault_of_ours_in_explaining_a_hang_is_told_and_the_run_ends_all_the_same(tmp_path: Path) -> None:
    said: list[str] = []

    def broken(*_: object) -> Finding:
        raise KeyError("ours")

    run = RunDir(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    peers = Peers(Node(0, run, "a run", "launch", []))
    keeper = LiveTableKeeper(peers, limits=AT_ONCE, ends=True, say=said.append, explain=broken)
    keeper.look({0: HANGING})
    until(lambda: keeper.hang)
    assert (
        keeper.hang is not None and keeper.hang.code == HANG and "longer than hang_timeout allows" in keeper.hang.what
    )
    (line,) = said
    assert line.startswith("warning: ") and "KeyError('ours')" in line
    keeper.close()


def test_ranks_that_go_on_after_they_were_looked_at_are_not_ended(tmp_path: Path) -> None:
    explained, said = threading.Event(), []

    def explain(*_: object) -> Finding:
        explained.set()
        return Finding(HANG, "rank 1 never entered all_reduce")

    peers = Peers(Node(0, RunDir(tmp_path), "a run", "launch", []))
    keeper = LiveTableKeeper(peers, limits=AT_ONCE, ends=True, say=said.append, explain=explain)
    keeper.look({0: HANGING})
    assert explained.wait(TIMEOUT_SECONDS)
    keeper.look({0: replace(HANGING, ranks=tuple(replace(rank, phase="done") for rank in HANGING.ranks))})
    until(lambda: not [one for one in threading.enumerate() if one.name == "live hang"])
    assert keeper.hang is None and said == ["the ranks that seemed to hang go on"]
    keeper.close()


def test_what_the_looks_at_the_ranks_have_shown_stands_in_the_table_while_the_hang_lasts(tmp_path: Path) -> None:
    explained = Finding(HANG, "rank 1 never entered all_reduce")
    said: list[str] = []
    peers = Peers(Node(0, RunDir(tmp_path), "a run", "launch", []))
    keeper = LiveTableKeeper(peers, limits=AT_ONCE, ends=False, say=said.append, explain=lambda *_: explained)
    keeper.look({0: HANGING})
    until(lambda: said)

    def shown() -> tuple[Finding, ...]:
        keeper.look({0: HANGING})
        table = read_live(RunDir(tmp_path))
        return table.overdue if table is not None else ()

    until(lambda: shown() == (explained,))
    keeper._limits = PATIENT
    until(lambda: shown() == ())
    keeper.close()


def test_below_a_headline_that_names_a_rank_no_line_says_that_none_is_behind() -> None:
    (late,) = overdue(LiveTable(nodes=(HANGING,)), AT_ONCE, time.time())
    assert NONE_BEHIND in late.what
    named = Finding(HANG, "rank 1 is stopped", evidence=(Evidence(late.what), Evidence("a stack")))
    told = [one.text for one in _without_contradiction(named).evidence]
    assert told == [late.what.replace(NONE_BEHIND, ""), "a stack"]
    assert _without_contradiction(late) == late


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
