import json
import resource

import numpy as np

from allranks.observe import EventLog, read_events
from allranks.observe.events import PhaseEvent, StepEvent


def test_events_are_in_the_file_at_once_and_in_order(tmp_path):
    path = tmp_path / "events" / "rank-00003.jsonl"
    log = EventLog(path, 3, run_id="a")
    log.write(PhaseEvent(phase="data"))
    log.write(StepEvent(step=1, loss=2.5))
    events = list(read_events(path))
    assert [event.kind for event in events] == ["phase", "step"]
    assert events[1].rank == 3 and events[1].run == "a" and events[1].loss == 2.5
    assert events[0].t <= events[1].t


def test_every_line_is_strict_json_even_with_numbers_that_are_not(tmp_path):
    path = tmp_path / "e.jsonl"
    log = EventLog(path, 0)
    log.write(StepEvent(loss=float("nan"), grad_norm=np.float32("inf"), epoch=-float("inf"), tokens=np.int64(4)))

    def refuse(name):
        raise AssertionError(name)

    (line,) = path.read_text().splitlines()
    event = json.loads(line, parse_constant=refuse)
    assert (event["loss"], event["grad_norm"], event["epoch"], event["tokens"]) == ("nan", "inf", "-inf", 4)


def test_a_torn_line_costs_only_itself(tmp_path):
    path = tmp_path / "e.jsonl"
    EventLog(path, 0).write(StepEvent(step=1))
    with path.open("a") as file:
        file.write('{"t": 1, "kind": "st')
    assert [event.step for event in read_events(path)] == [1]
    EventLog(path, 0).write(StepEvent(step=2))  # the resumed run
    assert [event.step for event in read_events(path)] == [1, 2]


def test_the_end_of_a_long_file(tmp_path):
    path = tmp_path / "e.jsonl"
    log = EventLog(path, 0)
    for step in range(100):
        log.write(StepEvent(step=step))
    steps = [event.step for event in read_events(path, last_bytes=500)]
    assert 2 <= len(steps) < 10 and steps == list(range(100 - len(steps), 100))
    assert len(list(read_events(path, last_bytes=10**9))) == 100


def test_a_missing_file_has_no_events(tmp_path):
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_a_full_disk_is_reported_once_and_does_not_stop_the_run(capsys):
    log = EventLog("/dev/full", 0)
    log.write(StepEvent(step=1))
    log.write(StepEvent(step=2))
    said = capsys.readouterr().err
    assert said.count("events of rank 0 are lost: the disk is full (No space left on device): /dev/full on") == 1
    assert said.count("the run goes on") == 1


def test_a_line_that_is_cut_off_by_a_full_disk_costs_only_itself(tmp_path):
    path = tmp_path / "e.jsonl"
    log = EventLog(path, 0)
    log.write(StepEvent(step=1))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, unlimited[1]))  # room for half a line
    try:
        log.write(StepEvent(step=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    log.write(StepEvent(step=3))
    assert [event.step for event in read_events(path)] == [1, 3]
