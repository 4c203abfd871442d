"""The head of a start on several "nodes" that are all this machine, with a program of ours in the place of allranks."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

HEAD = """
import sys
from allranks.cluster.nodes import parse_hosts
from allranks.cluster.transports import Transport
from allranks.errors import AllranksError
from allranks.launch.all_nodes.start import start_all_nodes
from allranks.launch.spec.everywhere import Everywhere

python, port, hosts, *words = sys.argv[1:]
try:
    start = Everywhere(parse_hosts(hosts), Transport("local", python), words, int(port), address="127.0.0.1")
    sys.exit(start_all_nodes(start))
except AllranksError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""
# Stands on the nodes for python, and for allranks: runs the code that follows `train`, knowing its node rank.
PYTHON = """#!/bin/sh
case "$*" in
    *allranks.cluster.agent*) exec {python} "$@" ;;
    *) exec {python} -c '
import os, signal, sys, time
words = sys.argv[sys.argv.index("train") + 1 :]
rank = int(words[words.index("--node-rank") + 1]) if "--node-rank" in words else 0
exec(words[0])
' "$@" ;;
esac
"""


@pytest.fixture
def head(tmp_path):
    """Start a head that runs `code` on `hosts`; all is ended after the test."""
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    started = []

    def start(code, hosts="n0,n1", port=None, **variables):
        port = port or free_port()
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD, str(python), str(port), hosts, "train", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "ALLRANKS_TEST_MARK": str(tmp_path), **variables},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def left(tmp_path):
    """Processes on the "nodes", agents included, that are not the head."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
            if f"ALLRANKS_TEST_MARK={tmp_path}".encode() in path.read_bytes().split(b"\0") and state != "Z":
                found.append(int(path.parent.name))
    return found


def ended(process):
    output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, output, errors


@pytest.mark.parametrize(
    ("codes", "code", "said"),
    [
        ((0, 0, 0), 0, ""),
        ((0, 75, 0), 75, ""),
        ((75, 75, 75), 75, ""),
    ],
)
def test_exit_codes_of_nodes_that_did_not_fail(head, codes, code, said):
    returncode, _, errors = ended(head(f"sys.exit({codes}[rank])", "n[0-2]"))
    assert (returncode, errors) == (code, said)


def test_the_first_failure_counts_and_ends_the_others(head, tmp_path):
    code = "rank == 1 and (print('bad luck', file=sys.stderr), sys.exit(7)); time.sleep(1000)"
    returncode, _, errors = ended(head(code, "n[0-2]"))
    assert returncode == 7
    assert errors.splitlines()[-4:] == [
        "n1: bad luck",
        "error: n1 failed first, with exit code 7",
        "  its last words: bad luck",
        "  also ended: n0, n2",
    ]
    assert left(tmp_path) == []


# Node 0 ends first, of the connection that node 1's rank left; node 1 says what it was.
LEAVES = """
import json
def leave(code, node, what):
    message = {"code": code, "what": what, "who": {"node": node, "rank": node}}
    os.write(int(os.environ["ALLRANKS_FINDING_FD"]), json.dumps(message).encode())
    print("error:", what, file=sys.stderr, flush=True)
    sys.exit(1)
def wait_for(*names):
    while not all(os.path.exists(name) for name in names):
        time.sleep(0.01)
open(f"up-{rank}", "w").close()
if rank == 0:
    wait_for("up-1", "up-2")
    open("left-0", "w").close()
    leave("peer-gone", 0, "closed by peer")
wait_for("left-0")
leave(*("rank-error", 1, "bad row") if rank == 1 else ("peer-gone", 2, "reset by peer"))
"""


def test_the_node_of_the_cause_is_named_whichever_node_ends_first(head, tmp_path):
    returncode, _, errors = ended(head(f"os.chdir({str(tmp_path)!r})\n{LEAVES}", "n[0-2]"))
    assert returncode == 1
    assert errors.splitlines()[-3:] == [
        "error: n1 failed first, with exit code 1",
        "  its last words: error: bad row",
        "  also ended: n0, n2",
    ]


@pytest.mark.parametrize("left", ["b'{'", "b'[]'", "b'x' * 60000", 'b\'{"code": 1, "who": 7}\''])
def test_what_a_command_leaves_that_is_no_finding_is_passed_over(head, left):
    returncode, _, errors = ended(head(f"os.write(int(os.environ['ALLRANKS_FINDING_FD']), {left}); sys.exit(7)", "n0"))
    assert returncode == 7 and "error: n0 failed first, with exit code 7" in errors


def test_a_node_whose_command_is_killed(head):
    returncode, _, errors = ended(head("rank or os.kill(os.getpid(), signal.SIGKILL); time.sleep(1000)"))
    assert returncode == 1
    assert "error: n0 failed first: killed by SIGKILL" in errors


def test_output_of_other_nodes_is_prefixed_and_the_command_is_shown(head):
    returncode, output, errors = ended(head("print('hello', rank); print('careful', rank, file=sys.stderr)"))
    assert returncode == 0
    assert "hello 0" in output.splitlines() and "n1: hello 1" in output.splitlines()
    assert sorted(errors.splitlines()) == ["careful 0", "n1: careful 1"]
    shown = output[: output.index("hello 0\n")]
    assert "nodes:      2 over local: n0, n1" in shown and "--nnodes 2 --node-rank 0 --master-addr 127.0.0.1" in shown


def test_variables_cross_and_are_shown_without_their_values(head):
    process = head("print(os.environ['HF_TOKEN'][::-1])", HF_TOKEN="hf_abcdefghijklmnopqrst")
    returncode, output, errors = ended(process)
    assert returncode == 0, errors
    assert "tsrqponmlkjihgfedcba_fh" in output
    assert "HF_TOKEN" in output and "hf_abcdefghijklmnopqrst" not in output


def test_a_secret_on_the_command_line_is_not_shown_again(head):
    returncode, output, errors = ended(head("print(words[0][-5:])  # hf_abcdefghijklmnopqrst-12"))
    assert returncode == 0, errors
    assert "st-12" in output and "hf_abcdefghijklmnopqrst" not in output


def test_a_port_that_is_taken_is_told_before_anything_starts(head):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        returncode, output, errors = ended(head("print('started')", port=port))
    assert returncode == 3 and "started" not in output
    assert errors.startswith(f"error: n0 cannot open port {port}: already in use")


SAVES = """
def save(number, frame):
    print("saving", signal.Signals(number).name, rank, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGUSR1, save)
print("ready", rank, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("sent", "received"),
    [(signal.SIGINT, "SIGTERM"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1")],
)
def test_signals_to_the_head_reach_the_run_on_every_node(head, tmp_path, sent, received):
    process = head(SAVES)
    await_lines(process, "ready 0", "n1: ready 1")
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    returncode, output, errors = ended(process)
    assert returncode == 75 and errors == ""
    assert f"saving {received} 0" in output.splitlines() and f"n1: saving {received} 1" in output.splitlines()
    assert f"{sent.name}: asked all nodes to save" in output
    assert left(tmp_path) == []


STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', rank, flush=True); time.sleep(1000)"


def test_a_second_ctrl_c_ends_everything_at_once(head, tmp_path):
    process = head(STUBBORN)
    await_lines(process, "ready 0", "n1: ready 1")
    process.send_signal(signal.SIGINT)
    await_lines(process, "SIGINT: asked all nodes to save a checkpoint and stop; Ctrl-C again ends them at once")
    process.send_signal(signal.SIGINT)
    returncode, _, errors = ended(process)
    assert returncode == 130 and "everything was ended at once" in errors
    assert left(tmp_path) == []


def test_a_head_that_is_killed_leaves_nothing(head, tmp_path):
    """Not even what ignores SIGTERM and has left its session."""
    runaway = "os.fork() or (os.setsid(), signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(1000)); "
    process = head(runaway + STUBBORN)
    await_lines(process, "ready 0", "n1: ready 1")
    assert len(left(tmp_path)) > 5
    process.kill()
    deadline = time.monotonic() + 30
    while left(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left(tmp_path) == []


def test_a_terminal_that_stands_still_for_long_ends_no_run(head):
    """After Ctrl-S the head cannot write; its nodes must still hear that it lives."""
    process = head("[print(rank, number, 'x' * 1000) for number in range(20_000)]", "n[0-2]")
    time.sleep(11)  # longer than an agent waits for a sign of life
    returncode, output, errors = ended(process)
    assert (returncode, errors) == (0, "")
    assert output.count("x" * 1000) == 60_000


def await_lines(process, *wanted):
    missing = list(wanted)
    for line in process.stdout:
        if line.rstrip("\n") in missing:
            missing.remove(line.rstrip("\n"))
        if not missing:
            return
    raise AssertionError(f"the head ended without {missing}: {process.stderr.read()}")


# Prints the node's token, and whether any command line of this machine holds it.
TELL_TOKEN = """
import pathlib
token = os.environ["ALLRANKS_TOKEN"]
seen = b"".join(path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if path.parent.exists())
print("told:", token, token.encode() in seen)
"""


def told_tokens(output):
    return re.findall(r"(?m)^(?:n[0-9]: )?told: (.+) (True|False)$", output)


def test_all_nodes_get_one_token_that_no_command_line_and_no_line_of_ours_holds(head):
    made = []
    for _ in range(2):
        code, output, errors = ended(head(TELL_TOKEN, "n[0-2]"))
        assert code == 0, errors
        [(token, seen), *others] = told_tokens(output)
        assert others == [(token, seen)] * 2 and seen == "False" and len(bytes.fromhex(token)) == 32
        assert (output + errors).count(token) == 3
        made.append(token)
    assert made[0] != made[1]


def test_the_users_own_token_wins_and_is_shown_nowhere(head):
    code, output, errors = ended(head(TELL_TOKEN, ALLRANKS_TOKEN="the user's own"))
    assert code == 0 and told_tokens(output) == [("the user's own", "False")] * 2, errors
    assert (output + errors).count("the user's own") == 2
