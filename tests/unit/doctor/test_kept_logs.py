"""What a cluster's log keeper put around a program's lines makes no difference to what the doctor says of them."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allranks.doctor.read_logs import diagnosis_of_logs
from allranks.doctor.reading.from_json import FromJson

LINES = """\
{'loss': 1.2, 'epoch': 0.1}
Traceback (most recent call last):
  File "/home/u/train.py", line 88, in <module>
    main()
  File "/home/u/train.py", line 61, in main
    widget.turn()
  File "/opt/lib/python3.11/site-packages/acme/widget.py", line 5, in turn
    raise WidgetError("no")
acme.WidgetError: widget 7 is not aligned
""".splitlines()
CLOCK = [f"10:00:{second:02d}" for second in range(len(LINES))]


def as_json(**keys):
    return lambda line, at: json.dumps({key: value(line, at) for key, value in keys.items()})


KEEPERS = {
    "docker": as_json(
        log=lambda line, at: f"{line}\n", stream=lambda *_: "stderr", time=lambda _, at: f"2026-11-29T{at}Z"
    ),
    "google": as_json(textPayload=lambda line, _: line, timestamp=lambda _, at: f"2026-11-29T{at}Z"),
    "fluent": as_json(
        level=lambda *_: "ERROR", message=lambda line, _: line, kubernetes=lambda *_: {"pod_name": "node-7"}
    ),
    "journal": as_json(_HOSTNAME=lambda *_: "node7", MESSAGE=lambda line, _: line, _PID=lambda *_: "12"),
    "loki": as_json(labels=lambda *_: {"pod": "node-7"}, line=lambda line, _: line),
    "kubernetes": lambda line, at: f"2026-11-29T{at}.123456789Z stderr F {line}",
    "kubectl --timestamps": lambda line, at: f"2026-11-29T{at}.123456789Z {line}",
    "kubectl --prefix": lambda line, _: f"[pod/node-7/pytorch] {line}",
    "stern": lambda line, _: f"node-7 pytorch {line}",
    "docker compose": lambda line, _: f"trainer-7  | {line}",
    "journalctl": lambda line, at: f"Nov 29 {at} node7 python[4251]: {line}",
    "journalctl -o short-iso": lambda line, at: f"2026-11-29T{at}+0100 node7 python[4251]: {line}",
    "aws logs tail": lambda line, at: f"2026-11-29T{at}.000000+00:00 algo-7/job-17 {line}",
    "logcli": lambda line, at: f'2026-11-29T{at}+01:00 {{container="a", pod="node-7"}} {line}',
    "sagemaker": lambda line, _: f"[1,mpirank:7,algo-7]<stderr>:{line}",
    "loguru": lambda line, at: f"2026-11-29 {at}.123 | ERROR    | __main__:train:61 - {line}",
    "ts": lambda line, at: f"Nov 29 {at} {line}",
    "gh run view --log": lambda line, at: f"train\trun\t2026-11-29T{at}.1234567Z {line}",
    "seconds": lambda line, at: f"1796000000.0{at[-2:]} {line}",
    "colours, spelled out": lambda line, _: f"^[[31m{line}^[[0m",
    "colours, lost": lambda line, _: f"[36m(Worker pid=12, ip=10.0.0.7)[0m {line}",
    "zeros": lambda line, _: f"\0\0\0{line}",
}


def told_of(tmp_path, text, name="run.log"):
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return diagnosis_of_logs([tmp_path / name])


@pytest.mark.parametrize("keeper", KEEPERS)
def test_the_exception_its_place_and_its_line_are_found_whoever_kept_the_log(tmp_path, keeper):
    told = told_of(tmp_path, "".join(f"{KEEPERS[keeper](*one)}\n" for one in zip(LINES, CLOCK, strict=True)))
    (shown,) = told.evidence
    assert (told.cause, shown.line) == ("exception", len(LINES))
    assert shown.text.replace("^[[0m", "").replace("[0m", "") == LINES[-1]
    assert "line 61 of /home/u/train.py" in told.meaning


@pytest.mark.parametrize(
    "keeper, node",
    [
        ("fluent", "node-7"),
        ("journal", "node7"),
        ("loki", "node-7"),
        ("kubectl --prefix", "node-7"),
        ("docker compose", "trainer-7"),
        ("journalctl", "node7"),
        ("journalctl -o short-iso", "node7"),
        ("aws logs tail", "algo-7/job-17"),
        ("logcli", "node-7"),
        ("sagemaker", "algo-7"),
    ],
)
def test_the_node_is_the_one_that_the_keeper_names(tmp_path, keeper, node):
    assert (
        told_of(tmp_path, "".join(f"{KEEPERS[keeper](*one)}\n" for one in zip(LINES, CLOCK, strict=True))).node == node
    )


@pytest.mark.parametrize("indent", [1, 2, 4])
def test_an_export_as_one_document_is_read_by_its_lines(tmp_path, indent):
    events = [{"timestamp": 1796000000000 + number, "message": line} for number, line in enumerate(LINES)]
    text = json.dumps({"events": events}, indent=indent)
    told = told_of(tmp_path, text)
    assert "line 61 of /home/u/train.py" in told.meaning
    assert told.evidence[0].line == next(
        number for number, line in enumerate(text.splitlines(), 1) if "not aligned" in line
    )


@pytest.mark.parametrize("key", ["message", "exc_info"])
def test_a_traceback_that_is_one_entry_is_read_as_the_lines_that_it_was(tmp_path, key):
    entry = json.dumps({"level": "ERROR", "message": "it failed"} | {key: "\n".join(LINES[1:])})
    told = told_of(tmp_path, "\n".join(["starting", entry, '{"message": "end"}', ""]))
    assert "line 61 of /home/u/train.py" in told.meaning
    assert (told.evidence[0].line, told.evidence[0].text) == (2, LINES[-1])


def test_lines_of_another_writer_within_a_traceback_are_none_of_it(tmp_path):
    kept = [f"worker-1 c {line}\nworker-2 c {line.replace('7', '8')}" for line in LINES[1:]]
    told = told_of(tmp_path, "\n".join(kept))
    assert told.evidence[0].text == LINES[-1] and "line 61 of /home/u/train.py" in told.meaning


def test_times_with_a_zone_are_compared_in_one(tmp_path):
    """The first in UTC is the last by the clock on the wall."""
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text("2026-11-29T10:00:00+09:00 OSError: [Errno 28] No space left on device\n")
    second.write_text("2026-11-29T09:00:00Z torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n")
    assert diagnosis_of_logs([second, first]).evidence[0].file == str(first)
    first.write_text(first.read_text().replace("+09:00", "-09:00"))
    assert diagnosis_of_logs([second, first]).evidence[0].file == str(second)


@pytest.mark.parametrize("hour", [9, 10, 11])
def test_times_of_which_one_tells_no_zone_decide_nothing(tmp_path, hour):
    """Neither which was first, nor that a run went on after it."""
    told_zone, told_none = tmp_path / "a.log", tmp_path / "b.log"
    told_zone.write_text("2026-11-29T10:00:05Z stderr F [rank0]: OSError: [Errno 28] No space left on device\n")
    day = f"2026-11-29 {hour:02d}"
    told_none.write_text(
        f"{day}:00:00,000 - INFO - step 5 loss 1.0\n"
        f"{day}:00:09,000 - ERROR - [rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    )
    told = diagnosis_of_logs([told_zone, told_none])
    assert (told.certainty, len(told.others)) == ("likely", 1)


class Pieces(io.RawIOBase):
    """A log that comes in pieces, as of a pipe."""

    def __init__(self, data, size):
        self._left, self._size = data, size

    def read1(self, _):
        piece, self._left = self._left[: self._size], self._left[self._size :]
        return piece


def through(data, size):
    file, told = FromJson(Pieces(data, size)), b""
    while piece := file.read(100):
        told += piece
    return told


NO_JSON = st.binary().filter(lambda data: b"{" not in data)


@given(NO_JSON, st.integers(1, 40))
def test_what_is_no_json_is_passed_on_as_it_is(data, size):
    assert through(data, size) == data


@given(
    st.lists(st.one_of(NO_JSON.map(lambda one: one.replace(b"\n", b" ")), st.text().map(lambda one: {"log": one}))),
    st.integers(1, 40),
)
def test_lines_stay_lines_in_pieces_of_any_size(lines, size):
    data = b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)
    told = through(data, size)
    assert told.count(b"\n") == len(lines)
    assert told == through(data, len(data) + 1)
    for line, got in zip(lines, told.split(b"\n"), strict=False):
        if isinstance(line, bytes):
            assert got == line
        else:
            assert b'"log"' not in got or '"log"' in line["log"]
