"""A run looked at from outside: how old the table is, where there is more, and what is damaged."""

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from simulated_runs import simulated

from allranks.errors import UsageError
from allranks.live.live_file import write_live
from allranks.live.look import look
from allranks.live.state import LiveEnd, LiveTable
from allranks.observe import EventFollower, EventLog, RunDir, read_events
from allranks.observe.events import ExitEvent, PhaseEvent, StepEvent


def kept(path: Path, *, age: float = 0.0, **changes: object) -> RunDir:
    run = RunDir(path)
    now = time.time()
    write_live(run, replace(simulated(3), t=now - age, **changes))
    os.utime(run.live, (now - age, now - age))
    return run


def test_a_fresh_table_has_no_notes(tmp_path: Path) -> None:
    seen = look(kept(tmp_path))
    assert seen.notes == [] and seen.age_seconds is not None and len(seen.table.ranks) == 3


def test_an_old_table_says_since_when_nothing_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # half a second more would be told as 3,601 s
    run = kept(tmp_path, age=3600)
    (note,) = look(run).notes
    assert "nothing was written for 3,600 s, since " in note and "on gpu0" in note


def test_a_launcher_that_is_gone_from_this_machine_is_said_to_be(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    node = replace(simulated(3).nodes[0], host=socket.gethostname(), launcher_pid=child)
    (note,) = look(kept(tmp_path, age=100, nodes=(node,))).notes
    assert f"(pid {child}) is gone" in note
    (note,) = look(kept(tmp_path, age=100, nodes=(replace(node, launcher_pid=os.getpid()),))).notes
    assert f"(pid {os.getpid()}) is there" in note


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_clocks_that_differ_make_no_table_old(tmp_path: Path, ahead: float) -> None:
    run = kept(tmp_path)
    write_live(run, replace(simulated(3), t=time.time() + ahead))
    assert look(run).notes == []


def test_a_run_that_has_ended_is_never_old(tmp_path: Path) -> None:
    seen = look(kept(tmp_path, age=3600, ended=LiveEnd(exit_code=75)))
    assert seen.notes == [] and seen.age_seconds is None


DAMAGED = [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"nodes": 3}', b"\0" * 4096]


@pytest.mark.parametrize("content", [*DAMAGED, "folder", "fifo", "loop"], ids=range(11))
def test_a_damaged_table_is_one_message_or_a_note(tmp_path: Path, content: bytes | str) -> None:
    run = RunDir(tmp_path)
    if content == "folder":
        run.live.mkdir()
    elif content == "fifo":
        os.mkfifo(run.live)
    elif content == "loop":
        run.live.symlink_to(run.live)
    else:
        run.live.write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"live\.json (is|cannot)") as told:
        look(run)
    assert "\n" not in str(told.value)
    log = EventLog(run.events(0), 0, run_id="a")
    log.write(PhaseEvent(phase="train", pid=4, num_steps=9))
    log.write(StepEvent(step=3, loss=2.0, seconds=1.0))
    log.close()
    seen = look(run)
    assert seen.table.step == 3 and seen.notes[0].startswith("live.json ")


def test_a_run_without_a_table_is_told_by_its_events_with_its_end(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    log = EventLog(run.events(0), 0, run_id="a")
    log.write(StepEvent(step=3, seconds=1.0))
    log.write(ExitEvent(code=75, reason="preempted"))
    log.close()
    seen = look(run)
    assert seen.table.ended == LiveEnd(exit_code=75)
    assert any("no table is kept" in note for note in seen.notes)


def test_a_node_without_the_disk_of_node_0_says_who_has_the_table(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.logs(1).mkdir(parents=True)
    (run.logs(1) / "launch.json").write_text(json.dumps({"command": ["torchrun", "--master-addr", "10.9.0.1"]}))
    with pytest.raises(UsageError, match=r"only what node 1 wrote: node 0 \(10\.9\.0\.1\) has the table"):
        look(run)


def test_what_is_no_run_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="output_dir"):
        look(RunDir(tmp_path))
    with pytest.raises(UsageError, match="no folder on this node"):
        look(RunDir(tmp_path / "not-there"))


def test_the_message_for_programs_is_json_and_is_read_as_a_table(tmp_path: Path) -> None:
    seen = look(kept(tmp_path))
    message = json.loads(json.dumps(seen.to_message(), allow_nan=False))
    assert LiveTable.from_message(message) == seen.table
    assert message["age_seconds"] == seen.age_seconds


def test_a_table_of_a_newer_version_says_that_something_may_be_missing(tmp_path: Path) -> None:
    (note,) = look(kept(tmp_path, version=99)).notes
    assert note.startswith("live.json is of version 99, and this allranks knows version 1: ")


def test_events_that_are_no_file_are_not_waited_for(tmp_path: Path) -> None:
    """Who opens a FIFO waits for a writer, without end."""
    run = RunDir(tmp_path)
    run.events(1).parent.mkdir()
    os.mkfifo(run.events(1))
    run.events(2).mkdir()
    with pytest.raises(UsageError, match="nothing to show of a run"):
        look(run)
    assert EventFollower(run.events(1)).read() == [] and list(read_events(run.events(1))) == []
    log = EventLog(run.events(0), 0, run_id="a")
    log.write(StepEvent(step=3, seconds=1.0))
    log.close()
    assert [rank.rank for rank in look(run).table.ranks] == [0]


def told_by_events(path: Path, seconds: int, *, slow: float, ended: bool = False) -> RunDir:
    """Three ranks that make a step a second, of which rank 2 works for `slow` seconds of it itself."""
    run, now = RunDir(path), time.time()
    run.events(0).parent.mkdir()
    for rank in range(3):
        lines = [{"kind": "phase", "phase": "train", "num_steps": 9000, "pid": 40 + rank}]
        work = slow if rank == 2 else 0.3
        lines += [{"kind": "step", "step": step, "seconds": 1.0, "compute_seconds": work} for step in range(1, seconds)]
        lines += [{"kind": "exit", "code": 0}] if ended else []
        common = {"rank": rank, "run": "a"}
        told = [json.dumps({**line, **common, "t": now - seconds + at}) for at, line in enumerate(lines)]
        run.events(rank).write_text("\n".join(told) + "\n")
    return run


def test_without_a_table_a_rank_that_is_slow_for_a_minute_is_named_by_the_events(tmp_path: Path) -> None:
    """As under a launcher of the user's own: nobody knows what else its node does."""
    for name in "abcd":
        (tmp_path / name).mkdir()
    (slow,) = look(told_by_events(tmp_path / "a", 120, slow=0.9)).table.stragglers
    assert slow.who.rank == 2 and "rank 2 (node 0) is slow by itself: it works 0.9 s" in slow.what
    assert look(told_by_events(tmp_path / "b", 50, slow=0.9)).table.stragglers == ()
    assert look(told_by_events(tmp_path / "c", 120, slow=0.35)).table.stragglers == ()
    assert look(told_by_events(tmp_path / "d", 120, slow=0.9, ended=True)).table.stragglers == ()


def test_a_run_without_a_table_that_has_ended_did_so_with_its_last_event(tmp_path: Path) -> None:
    run = told_by_events(tmp_path, 120, slow=0.3, ended=True)
    last = max(event.t for rank in range(3) for event in read_events(run.events(rank)))
    table = look(run).table
    assert table.t == last and {node.t for node in table.nodes} == {last}


def test_without_a_table_the_rank_that_is_behind_is_named_when_its_time_is_over(tmp_path: Path) -> None:
    run = told_by_events(tmp_path, 120, slow=0.3)
    assert look(run).table.overdue == ()
    long_ago = time.time() - 300
    for rank, step in enumerate((8, 8, 7)):
        common = {"run": "b", "rank": rank, "t": long_ago}
        lines = [{"kind": "phase", "phase": "train", "pid": 70 + rank}, {"kind": "step", "step": step, "seconds": 1.0}]
        with run.events(rank).open("a") as file:
            file.write("".join(json.dumps({**line, **common}) + "\n" for line in lines))
    (behind,) = look(run).table.overdue
    assert behind.who.rank == 2 and "longer than hang_timeout allows (step: 240 s)" in behind.what
    config = {"base_model": "m", "datasets": [{"path": "d", "type": "chat_template"}], "hang_timeout": {"step": 1000}}
    run.manifest.write_text(json.dumps({"config": {**config, "learning_rate": 0.1, "max_steps": 9}}))
    assert look(run).table.overdue == ()
