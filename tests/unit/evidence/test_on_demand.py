"""`allranks stacks RUN`: where ranks are, of a run that hangs, has ended, or is none."""

import json
import os
import socket
import subprocess
import sys

import pytest

from allranks.errors import AllranksError, UsageError
from allranks.evidence.on_demand import stacks_here, text_of
from allranks.evidence.py_spy import threads_of_py_spy
from allranks.evidence.python_stacks import Frame, folded, named, own_frame, threads_of
from allranks.evidence.rank_memory import CannotAsk
from tests.unit.evidence.hanging_ranks import THIS_RUN, hanging
from tests.unit.evidence.test_gather import _skips


def stacks(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "allranks", "stacks", *words], capture_output=True, text=True)


def test_ranks_of_a_hanging_run_are_folded_and_the_one_that_is_awaited_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"run": THIS_RUN}))
    with hanging(_skips, tmp_path, num_ranks=3):
        shown = stacks(str(tmp_path), "--seconds", "20")
        told = json.loads(stacks(str(tmp_path), "--seconds", "20", "--json").stdout)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert [line for line in lines if line.startswith("rank")] == ["rank 1:", "ranks 0, 2:"]
    assert shown.stderr.splitlines() == [
        f"note: no launcher of this run can be asked: there is no live.json in {tmp_path}: only ranks of this machine "
        "are looked for"
    ]
    assert lines[-1] == (
        "at this moment: rank 1 never entered all_reduce of 4 float (number 2 of all ranks), in which ranks 0, 2 wait"
    )
    assert [one["rank"] for one in told["ranks"]] == [0, 1, 2]
    assert text_of(told)[-1] == lines[-1]


def test_a_run_that_has_ended_says_so(tmp_path):
    (tmp_path / "live.json").write_text(json.dumps({"ended": {"exit_code": 75}}))
    with pytest.raises(AllranksError, match="has ended with exit code 75"):
        stacks_here(tmp_path, seconds=1.0)


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"run": 3}', '{"run": "nobody"}'])
def test_a_folder_without_ranks_says_what_to_do(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "live.json").write_text(manifest)
    with pytest.raises(AllranksError, match=r"no rank of this run .* type the same there"):
        stacks_here(tmp_path, seconds=1.0)


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        stacks_here(tmp_path / "none", seconds=1.0)
    done = stacks(str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {tmp_path} is no run's output_dir: ")


def test_anyones_program_is_shown_with_what_the_kernel_tells_of_it(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"run": "anyones"}))
    env = {**os.environ, "ALLRANKS_RUN_ID": "anyones", "RANK": "2", "PATH": ""}
    program = [sys.executable, "-c", "print(flush=True); import time; time.sleep(1000)"]
    with subprocess.Popen(program, env=env, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            told = stacks_here(tmp_path, seconds=20.0)
        finally:
            process.kill()
    (line,) = text_of(told)
    assert line.startswith(f"rank 2 ({socket.gethostname()}): pid {process.pid}, state S")
    assert "py-spy" in line


def test_stacks_are_read_and_the_line_of_the_user_is_found():
    text = (
        "Thread 0x00007f01 [evidence] (most recent call first):\n"
        '  File "/x/evidence.py", line 5 in _answer\n\n'
        "Current thread 0x00007f00 (most recent call first):\n"
        '  File "/v/lib/python3.11/site-packages/torch/nn/module.py", line 7 in forward\n'
        '  File "/home/me/a train.py", line 12 in step\n'
        "a line of something else\n"
    )
    first, second = threads_of(text)
    assert (first.trains, second.name) == (True, "evidence")
    assert str(own_frame(first.frames)) == "/home/me/a train.py:12 in step"
    assert threads_of(text, 0x7F01)[0].name == "evidence"
    assert threads_of("") == []
    assert own_frame([]) is None
    frame = Frame("a.py", 1, "f")
    assert folded({0: [frame], 2: [frame], 1: []})[:3] == ["rank 1:", "  no frame of Python", "ranks 0, 2:"]
    assert named([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"


def test_py_spys_answer_is_read():
    text = b'[{"thread_name": "MainThread", "frames": [{"name": "f", "filename": "a.py", "line": 3}]}]'
    (thread,) = threads_of_py_spy(text)
    assert (thread.trains, thread.frames) == (True, (Frame("a.py", 3, "f"),))
    for wrong in (b"", b"{}x", b"[3]", b'[{"frames": [{}]}]'):
        with pytest.raises(CannotAsk):
            threads_of_py_spy(wrong)
