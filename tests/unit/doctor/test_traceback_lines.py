"""What of a traceback is shown on a terminal."""

import subprocess
import sys
import traceback

from allranks.doctor.ranks import first_of_ranks
from allranks.doctor.traceback_lines import where_it_failed
from allranks.observe.events import ErrorEvent


def _fail(depth: int) -> None:
    if depth:
        _fail(depth - 1)
    raise KeyError("text")


def told_of(depth: int) -> str:
    try:
        _fail(depth)
    except KeyError as error:
        return "".join(traceback.format_exception(error))
    raise AssertionError


def test_the_newest_frames_with_their_code():
    lines = where_it_failed(told_of(20))
    assert len(lines) == 8
    assert lines[0].startswith(f'File "{__file__}", line ') and lines[0].endswith("in _fail")
    assert lines[-1] == '  raise KeyError("text")'


def test_below_frames_of_libraries_alone_the_users_own_is_kept():
    library = "".join(f'  File "/v/lib/python3.11/site-packages/t.py", line {n}, in f\n    g()\n' for n in range(9))
    text = f'Traceback (most recent call last):\n  File "/home/ana/data.py", line 3, in read\n    f()\n{library}E: x\n'
    lines = where_it_failed(text)
    assert lines[:2] == ['File "/home/ana/data.py", line 3, in read', "  f()"]
    assert len(lines) == 10


def test_what_is_no_traceback_gives_nothing():
    assert where_it_failed("") == where_it_failed("ValueError: no\n") == []
    assert where_it_failed('  File "<stdin>", line 1, in <module>\n') == ['File "<stdin>", line 1, in <module>']


def test_marks_below_the_code_are_left_out():
    run = subprocess.run([sys.executable, "-c", "x = [1][\n3]"], capture_output=True, text=True)
    assert run.stderr and not [line for line in where_it_failed(run.stderr) if "^" in line or "~" in line]


def test_a_finding_shows_where_its_rank_failed_and_none_where_another_one_is_the_cause(tmp_path):
    event = ErrorEvent(rank=1, node=1, message="KeyError: 'text'", traceback=told_of(0))
    finding = first_of_ranks(0, [event], "", lambda rank: tmp_path / "log")
    assert [one.text for one in finding.evidence][-1] == '  raise KeyError("text")'
    event = ErrorEvent(rank=0, node=0, message="RuntimeError: Connection closed by peer", traceback=told_of(0))
    assert first_of_ranks(0, [event], "", lambda rank: tmp_path / "log").evidence == ()
