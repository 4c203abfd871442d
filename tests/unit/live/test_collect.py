"""What a node says of its ranks, by real processes, files and threads of this machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from allranks.live import LiveTable, NodeState, RankState
from allranks.live.collect import NodeCollector
from allranks.live.from_events import read_live, table_of
from allranks.live.live_file import LiveFile, write_end, write_live
from allranks.live.table import at_our_clock, table_of_nodes
from allranks.observe import EventLog, RunDir, read_events
from allranks.observe.events import CheckpointEvent, EvalEvent, ExitEvent, PhaseEvent, StepEvent, StragglerEvent
from tests.unit.rendezvous.nodes import until

RUN = "20261128-000000-1"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@pytest.fixture
def rank() -> Iterator[psutil.Process]:
    """A process that waits."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield psutil.Process(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
    process.communicate(b"\n")


def events_of(run: RunDir, rank: int = 0, run_id: str = RUN) -> EventLog:
    return EventLog(run.events(rank), rank, run_id=run_id)


def trained(log: EventLog, steps: int, *, num_steps: int = 100) -> None:
    log.write(PhaseEvent(phase="model", pid=os.getpid()))
    log.write(PhaseEvent(phase="train", pid=os.getpid(), num_steps=num_steps, full_speed=1000.0))
    for step in range(1, steps + 1):
        log.write(StepEvent(step=step, loss=3.0 / step, tokens=50, seconds=0.5, data_seconds=0.1))


def test_what_other_programs_take_of_the_cores_is_told(run: RunDir, rank: psutil.Process) -> None:
    collector = NodeCollector(run, RUN, 0, "host0")
    first = collector.collect({0: rank})
    assert (first.idle_cpu, first.other_cpu_use) == (None, None)
    until_used = time.process_time() + 0.3
    while time.process_time() < until_used:  # this process is no rank
        pass
    state = collector.collect({0: rank})
    assert state.idle_cpu is not None and state.idle_cpu >= 0
    assert state.other_cpu_use is not None and state.other_cpu_use > 0
    assert NodeState.from_message(json.loads(json.dumps(state.to_message()))) == state


def test_only_events_of_this_start_count(run: RunDir, rank: psutil.Process) -> None:
    trained(events_of(run, run_id="an earlier one"), 70)
    collector = NodeCollector(run, RUN, 3, "host3")
    assert collector.collect({0: rank}).ranks[0].phase is None
    trained(events_of(run), 2)
    state = collector.collect({0: rank}, launcher_pid=7)
    assert (state.node, state.host, state.launcher_pid) == (3, "host3", 7)
    (found,) = state.ranks
    assert (found.phase, found.step, found.num_steps, found.loss) == ("train", 2, 100, 1.5)
    assert (found.tokens_per_second, found.mfu, found.median_step_seconds) == (100.0, 0.1, 0.5)
    assert found.pid == rank.pid
    assert found.memory_bytes is not None
    assert found.memory_bytes > 2**20
    assert found.events_age_seconds is not None


def test_the_phases_between_steps_begin_and_end(run: RunDir, rank: psutil.Process) -> None:
    log, collector = events_of(run), NodeCollector(run, RUN, 0, "host")
    trained(log, 2, num_steps=3)
    expected = [
        (PhaseEvent(phase="evaluation", step=2), "evaluation"),
        (EvalEvent(step=2, eval_loss=1.0), "train"),
        (PhaseEvent(phase="checkpoint", step=2), "checkpoint"),
        (CheckpointEvent(step=2, state="started"), "train"),
        (StepEvent(step=3), "checkpoint"),  # all steps are done, and the save may still be under way
        (PhaseEvent(phase="export"), "export"),
        (CheckpointEvent(step=2, state="committed"), "export"),
        (PhaseEvent(phase="done"), "done"),
    ]
    for event, phase in expected:
        log.write(event)
        assert collector.collect({0: rank}).ranks[0].phase == phase
    log.write(ExitEvent(code=0))
    assert collector.collect({0: rank}).ranks[0].exit_code == 0


def test_a_rank_that_is_started_again_begins_anew(run: RunDir, rank: psutil.Process) -> None:
    log, collector = events_of(run), NodeCollector(run, RUN, 0, "host")
    trained(log, 5)
    log.write(ExitEvent(code=1))
    log.write(PhaseEvent(phase="rendezvous", pid=os.getpid() + 1))
    (found,) = collector.collect({0: rank}).ranks
    assert (found.phase, found.step, found.exit_code, found.attempt) == ("rendezvous", None, None, 2)


def test_the_state_of_the_process_is_told_while_it_is_stopped_and_after_its_end(
    run: RunDir, rank: psutil.Process
) -> None:
    collector = NodeCollector(run, RUN, 0, "host")
    until(lambda: collector.collect({4: rank}).ranks[0].process_state == "S")
    rank.send_signal(signal.SIGSTOP)
    until(lambda: collector.collect({4: rank}).ranks[0].process_state == "T")
    (found,) = collector.collect({}).ranks
    assert (found.rank, found.process_state) == (4, "gone")


def test_only_the_bytes_over_the_interfaces_of_the_run_count(run: RunDir) -> None:
    ours = NodeCollector(run, RUN, 0, "host", interfaces=["lo"])
    others = NodeCollector(run, RUN, 0, "host", interfaces=["none0"])
    for collector in (ours, others):
        collector.collect({})
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as way:
        there, _ = server.accept()
        for _ in range(16):
            way.sendall(bytes(2**16))
            there.recv(2**16, socket.MSG_WAITALL)
        there.close()
    after = ours.collect({})
    assert after.bytes_in is not None and after.bytes_in > 0
    idle = others.collect({})
    assert (idle.bytes_in, idle.bytes_out) == (0, 0)


def test_a_table_joins_nodes_whose_clocks_differ() -> None:
    ahead = NodeState(
        node=1, t=5000.0, ranks=(RankState(rank=1, since=4990.0, phase="train", step=3, num_steps=10, loss=2.0),)
    )
    own = NodeState(
        node=0, t=1000.0, ranks=(RankState(rank=0, since=999.0, step=4, median_step_seconds=2.0, loss=1.0),)
    )
    table = table_of_nodes(RUN, 1001.0, [at_our_clock(ahead, 1001.0), own])
    assert [node.node for node in table.nodes] == [0, 1]
    assert table.ranks[1].since == 991.0
    assert (table.step, table.num_steps, table.loss, table.eta_seconds) == (3, 10, 2.0, 14.0)


def test_what_several_processes_say_of_one_node_is_one_node() -> None:
    states = [NodeState(node=rank // 2, host="h", ranks=(RankState(rank=rank),)) for rank in (3, 0, 1, 2)]
    table = table_of_nodes(RUN, 1.0, states)
    assert [(node.node, len(node.ranks)) for node in table.nodes] == [(0, 2), (1, 2)]
    assert [rank.rank for rank in table.ranks] == [0, 1, 2, 3]


def test_a_run_without_a_table_is_read_from_its_events(run: RunDir) -> None:
    with pytest.raises(FileNotFoundError):
        table_of(run)
    for rank in (0, 1):
        trained(events_of(run, rank, run_id="an earlier one"), 9)
        log = events_of(run, rank)
        trained(log, 3 + rank)
        log.write(ExitEvent(code=rank))
    run.logs(1).mkdir(parents=True)
    run.log(1, 1).touch()
    (run.logs(1) / "launch.json").write_text('{"host": "host1"}')
    table = table_of(run)
    assert table.run_id == RUN
    assert [(node.node, node.host, [rank.rank for rank in node.ranks]) for node in table.nodes] == [
        (0, "", [0]),
        (1, "host1", [1]),
    ]
    assert (table.step, table.num_steps) == (3, 100)
    assert table.ended is not None
    assert table.ended.exit_code == 1


def test_how_many_steps_there_are_is_known_of_a_long_run(run: RunDir) -> None:
    log = events_of(run)
    trained(log, 1)
    line = json.dumps({"t": 1.0, "rank": 0, "kind": "step", "run": RUN, "step": 2, "filling": "x" * 200})
    with run.events(0).open("a") as file:
        file.write(f"{line}\n" * 3000)
    assert table_of(run).num_steps == 100


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"nodes": 3}', "[" * 100_000])
def test_a_damaged_table_is_no_table(run: RunDir, text: str) -> None:
    run.live.write_text(text)
    assert read_live(run) is None
    trained(events_of(run), 3)
    assert table_of(run).step == 3


def test_a_table_of_an_earlier_start_is_not_taken_for_the_newest(run: RunDir) -> None:
    write_live(run, LiveTable(run_id="an earlier one", step=99))
    trained(events_of(run), 3)
    assert table_of(run).step == 3
    write_live(run, LiveTable(run_id=RUN, step=7))
    assert table_of(run).step == 7


def test_the_end_is_put_into_the_table_of_its_own_start(run: RunDir) -> None:
    write_end(run, RUN, 0, None)
    assert not run.live.exists()
    write_live(run, LiveTable(run_id=RUN, step=7))
    write_end(run, "another", 0, None)
    write_end(run, RUN, 1, None)
    table = read_live(run)
    assert table is not None
    assert (table.step, table.ended and table.ended.exit_code) == (7, 1)


def test_readers_see_a_whole_table_whenever_they_look(run: RunDir) -> None:
    nodes = tuple(NodeState(node=node, ranks=tuple(RankState(rank=rank) for rank in range(50))) for node in range(20))
    write_live(run, LiveTable(nodes=nodes, step=0))
    over = threading.Event()

    def write() -> None:
        for step in range(100):
            write_live(run, LiveTable(nodes=nodes, step=step))
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        table = read_live(run)
        assert table is not None
        assert len(table.nodes) == 20
    writer.join()


def test_a_disk_that_does_not_take_the_table_is_told_of_once(tmp_path: Path) -> None:
    said: list[str] = []
    file = LiveFile(RunDir(tmp_path / "gone"), said.append)
    for step in range(50):
        file.write(LiveTable(step=step))
    file.close()
    assert len(said) == 1
    assert "No such file or directory: no live view; the run goes on" in said[0]


def test_a_straggler_is_an_event_beside_those_of_rank_0(run: RunDir) -> None:
    slow = StragglerEvent(of_rank=3, node="gpu1", host="gpu1", step=20, message="warning: rank 3 is slow")
    file = LiveFile(run, pytest.fail)
    file.note(slow, RUN)  # no rank has written here: nor does this
    file.close()
    assert not run.events(0).exists()
    log = events_of(run)
    log.write(PhaseEvent(phase="train"))
    file = LiveFile(run, pytest.fail)
    file.note(slow, RUN)
    file.note(replace(slow, is_slow=False), RUN)
    file.close()
    log.write(StepEvent(step=21))
    _, first, second, last = read_events(run.events(0))
    assert first == replace(slow, t=first.t, run=RUN) and first.t > 0
    assert isinstance(second, StragglerEvent) and not second.is_slow
    assert isinstance(last, StepEvent)


def test_a_disk_that_hangs_holds_nobody(tmp_path: Path) -> None:
    """A pipe that nobody reads takes the place of the file that is written."""
    run = RunDir(tmp_path)
    os.mkfifo(run.live.with_name(f".{run.live.name}.{os.getpid()}"))
    file = LiveFile(run, pytest.fail)
    for step in range(1000):
        file.write(LiveTable(step=step))
    file.close()
    assert not run.live.exists()


def test_of_what_an_earlier_start_wrote_no_rank_is_silent(run: RunDir, rank: psutil.Process) -> None:
    log = run.log(0, 0)
    log.parent.mkdir(parents=True)
    log.write_text("of the start before\n")
    os.utime(log, (1, 1))
    collector = NodeCollector(run, RUN, 0, "host0")
    (seen,) = collector.collect({0: rank}).ranks
    assert seen.output_age_seconds is not None
    assert seen.output_age_seconds <= time.time() - rank.create_time() and seen.output_bytes == 0
    with log.open("a") as file:
        file.write("now\n")
    assert collector.collect({0: rank}).ranks[0].output_bytes == 4


@pytest.mark.parametrize("hours", (-1, 1))
def test_a_clock_that_is_set_while_a_rank_is_at_a_place_makes_it_no_hour_there(
    run: RunDir, rank: psutil.Process, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = NodeCollector(run, RUN, 0, "host0")
    log = events_of(run)
    trained(log, 3)
    run.log(0, 0).parent.mkdir(parents=True)
    run.log(0, 0).write_text("a line\n")
    collector.collect({0: rank})
    wall = time.time
    monkeypatch.setattr("allranks.live.collect.time.time", lambda: wall() + 3600 * hours)
    state = collector.collect({0: rank})
    (shown,) = state.ranks
    assert shown.since is not None and 0 <= state.t - shown.since < 60
    assert shown.events_age_seconds is not None and 0 <= shown.events_age_seconds < 60
    assert shown.output_age_seconds is not None and 0 <= shown.output_age_seconds < 60
