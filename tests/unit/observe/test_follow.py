"""Following event files: each event once, however they are written, cut, replaced and read."""

import json
import random

import pytest

from allranks.observe import EventFollower, EventLog, RunDir, RunFollower, read_events
from allranks.observe.event_lines import parse_event
from allranks.observe.events import KINDS, ErrorEvent, ExitEvent, StepEvent, UnknownEvent


@pytest.mark.parametrize("seed", range(60))
def test_any_interleaving_of_writes_cuts_and_reads_yields_each_event_once(tmp_path, seed):
    chance = random.Random(seed)
    path = tmp_path / "rank-00000.jsonl"
    follower = EventFollower(path)
    whole, read = [], []  # the steps whose lines were written to their end; those that were read
    half, step = b"", 0

    def append(data):
        with path.open("ab") as file:
            file.write(data)

    def look():
        read.extend(event.step for event in follower.read())

    def line():
        nonlocal step
        step += 1
        return b'{"t":%d,"rank":0,"kind":"step","run":"r","step":%d}\n' % (step, step)

    for _ in range(120):
        action = chance.choice(["write", "write", "half", "rest", "look", "restart", "cut", "replace", "resume"])
        if action in ("write", "half") and not half:
            data = line()
            at = chance.randrange(1, len(data) - 1) if action == "half" else len(data)
            append(data[:at])
            half = data[at:]
            whole += [step] if not half else []
        elif action == "rest" and half:
            append(half)
            half = b""
            whole.append(step)
        elif action == "look":
            look()
        elif action == "resume":  # another reader goes on from the same place
            look()
            follower = EventFollower(path, follower.offset)
            look()
        elif action in ("cut", "restart") and path.exists() and path.stat().st_size:
            look()
            if action == "cut":  # a power cut: what was not on the disk is gone, zeros may stand in its place
                with path.open("r+b") as file:
                    file.truncate(chance.randrange(path.stat().st_size + 1))
                append(chance.choice([b"", b"\0" * 50]))
                look()
            EventLog(path, 0).close()
            half = b""
        elif action == "replace" and step:
            look()
            new = tmp_path / "new"
            new.write_bytes(line())
            whole.append(step)
            new.replace(path)
            half = b""
    look()
    assert read == whole


def test_a_file_that_has_not_changed_is_not_opened_again(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    logs = [EventLog(run.events(rank), rank) for rank in range(3)]
    follower = RunFollower(run)
    for log in logs:
        log.write(StepEvent(step=1))
    assert [event.rank for event in follower.read()] == [0, 1, 2]
    opened = []
    monkeypatch.setattr(EventFollower, "_place", lambda self, *_: opened.append(self.path))
    logs[1].write(StepEvent(step=2))
    assert [(event.rank, event.step) for event in follower.read()] == [(1, 2)]
    assert opened == [run.events(1)]
    EventLog(run.events(7), 7).write(ExitEvent(code=0))  # a rank that came later
    assert [event.rank for event in follower.read()] == [7]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\0" * 4096,
        b"[1, 2]",
        b"17",
        b"null",
        b'"kind"',
        b"{}",
        b'{"kind": 3}',
        b'{"kind": ["step"]}',
        b'{"kind": "st',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind":"step","step":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_event_is_passed_over(tmp_path, line):
    path = tmp_path / "e.jsonl"
    path.write_bytes(line + b'\n{"t": 1.5, "rank": 2, "kind": "exit", "code": 0}\n')
    assert list(read_events(path)) == EventFollower(path).read() == [ExitEvent(t=1.5, rank=2, code=0)]


def test_of_other_versions_what_is_known_is_read_and_the_rest_is_kept():
    older = parse_event(b'{"t": 1, "rank": 0, "kind": "step", "step": 4, "loss": 2}')
    assert isinstance(older, StepEvent) and (older.loss, older.tokens, older.router_loss) == (2.0, 0, None)
    newer = parse_event(b'{"t": 1, "kind": "step", "step": 4, "watts": 700, "tokens": {"text": 3}, "seconds": true}')
    assert newer == StepEvent(t=1.0, step=4) and newer is not None
    assert newer.other == {"watts": 700, "tokens": {"text": 3}, "seconds": True}
    unknown = parse_event(b'{"t": 1, "kind": "power", "watts": 700, "name": "n", "rank": 3}')
    assert isinstance(unknown, UnknownEvent)
    assert (unknown.name, unknown.rank, unknown.other) == ("power", 3, {"watts": 700, "name": "n"})
    bad = parse_event(b'{"kind": "error", "message": "no \xff", "evidence": ["a", 1]}')
    assert isinstance(bad, ErrorEvent) and bad.message == "no \ufffd" and bad.evidence is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_as_it_was(tmp_path, kind):
    path = tmp_path / "e.jsonl"
    EventLog(path, 3, run_id="r").write(KINDS[kind]())
    (event,) = read_events(path)
    assert type(event) is KINDS[kind] and event.rank == 3 and event.run == "r" and not event.other
    found = json.loads(path.read_text())
    assert list(found)[:4] == ["t", "rank", "kind", "run"] and found["kind"] == kind
