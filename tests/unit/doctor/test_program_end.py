import json
import os
import signal

import pytest

from allranks.doctor.attempt import Ended, Started
from allranks.doctor.program_end import program_end
from allranks.doctor.told_in_logs import told_in_logs
from allranks.findings import Finding
from allranks.observe import RunDir
from allranks.observe.events import StepEvent

TORCHRUN = """\
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 4710)
Root Cause (first observed failure):
[0]:
  time      : 2026-11-20_16:32:52
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : {} (pid: 4711)
"""


@pytest.fixture
def node(tmp_path):
    run = RunDir(tmp_path)
    run.logs(0).mkdir(parents=True)
    run.log(0, 1).write_text("of the start before\nlast words of rank 1\n")
    return run


def outcome(node, agent_says, returncode, received=None, killed=False, lost=None, launcher="torchrun"):
    node.agent_log(0).write_text(agent_says)
    starts = {node.log(0, 1): len("of the start before\n")}
    started = Started(node, "run", 0, launcher, 2, 2, log_starts=starts, is_ours=False)
    return program_end(started, Ended(returncode, received, killed, lost))


def test_done(node):
    assert outcome(node, "", 0).exit_code == 0


def test_the_exit_code_is_that_of_the_rank_that_failed_first(node):
    found = outcome(node, TORCHRUN.format(7), 1)
    assert found.exit_code == 7
    assert found.message.startswith("error: rank 1 (node 0) failed first: exit code 7\n  | last words of rank 1\n")
    assert "of the start before" not in found.message and str(node.log(0, 1)) in found.message


TRACEBACK = """\
step 3 loss 0.5
[rank1]: Traceback (most recent call last):
[rank1]:   File "/home/ana/train.py", line {}, in main
[rank1]:     {}
[rank1]: {}
"""


def test_the_traceback_is_on_top_and_what_it_says_is_kept(node):
    node.log(0, 1).write_text("of the start before\n" + TRACEBACK.format(9, "raise error", "ValueError: bad batch 17"))
    found = outcome(node, TORCHRUN.format(1), 1)
    head, first, *_ = found.message.splitlines()
    assert head.endswith("failed first: exit code 1") and first.startswith("  | [rank1]: Traceback (most recent")
    assert found.reason.said == "ValueError: bad batch 17"


# As torch 2.13 and faulthandler write it, of a rank that gloo aborts in the backward pass of DDP.
ABORTED = """\
step 3 loss 0.5
terminate called after throwing an instance of 'gloo::EnforceNotMet'
  what():  [enforce fail at pair.cc:456] op.preamble.length <= op.nbytes. 8 vs 4. Received data size doesn't match \
expected size. Is there a distributed collective mismatch in your code?
Fatal Python error: Aborted

Thread 0x00007f5ab3dbeb80 (most recent call first):
  File "/venv/lib/python3.11/site-packages/torch/autograd/graph.py", line 979 in _engine_run_backward
  File "/home/ana/train.py", line 12 in main
"""
LOST = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:39330"


@pytest.mark.parametrize("step", [3, 4])
def test_of_ranks_that_differ_the_places_are_told_and_who_is_ahead(node, step):
    node.agent_log(0).with_name("launch.json").write_text("{}")
    node.log(0, 0).write_text(ABORTED)
    lost = TRACEBACK.format(9, "loss.backward()", LOST).replace("step 3", f"step {step}")
    node.log(0, 1).write_text("of the start before\n" + lost)
    ended = TORCHRUN.replace("Root Cause", "").replace("rank      : 0", "Root Cause rank      : 0").format(-6)
    found = outcome(node, ended.replace("exitcode  : 1 ", "exitcode  : -6 "), 1)
    head, *rest = found.message.splitlines()
    assert "rank 0 (node 0) was aborted in a collective at /home/ana/train.py:12 in main: gloo does that" in head
    assert rest[0] == "  rank 1 (node 0) was at /home/ana/train.py:9 in main"
    blames = "error: ranks do not enter the same collectives: rank 1 (node 0) has left out a collective of step 4: "
    assert head.startswith(blames) == (step == 4) and ("by what they have printed" in head) == (step == 4)
    assert found.reason.who.rank == (1 if step == 4 else 0)


def test_a_traceback_of_an_earlier_start_tells_nothing(node):
    node.agent_log(0).with_name("launch.json").write_text("{}")
    node.log(0, 0).write_text(ABORTED)
    node.log(0, 1).write_text("of the start before\n" + TRACEBACK.format(9, "loss.backward()", LOST))
    os.utime(node.log(0, 1), (1, 1))
    started = Started(node, "run", 0, "torchrun", 2, 2, is_ours=False)
    assert [(one.rank, type(one)) for one in told_in_logs(started)] == [(0, StepEvent)]


def test_a_killed_rank(node):
    found = outcome(node, TORCHRUN.format(-9), 1)
    assert found.exit_code == 1 and "killed by SIGKILL; the kernel kills so when memory runs out" in found.message


def test_a_signal_is_told_as_shells_tell_it(node):
    assert outcome(node, TORCHRUN.format(-15), 1, signal.SIGTERM).exit_code == 143
    assert outcome(node, TORCHRUN.format(75), 1, signal.SIGTERM).exit_code == 75
    assert outcome(node, "", 0, signal.SIGTERM).exit_code == 0
    assert outcome(node, "", -9, signal.SIGINT, killed=True).exit_code == 130


def test_deepspeeds_launcher(node):
    found = outcome(node, "['python', 'train.py'] exits with return code = 3", 3, launcher="deepspeed")
    assert found.exit_code == 3 and "a rank of node 0 failed first: exit code 3" in found.message
    done = "Process 1 exits successfully.\n"
    assert outcome(node, done * 2, 0, launcher="deepspeed").exit_code == 0
    # It returns 0 when the process that watches over the ranks was killed.
    assert outcome(node, done, 0, launcher="deepspeed").exit_code == 1


def test_another_node_was_lost(node):
    found = outcome(node, "", -9, killed=True, lost=Finding("node-lost", "node 1 (gpu7) is lost"))
    assert (found.exit_code, found.message.splitlines()[0]) == (1, "error: node 1 (gpu7) is lost")


def test_a_rank_killed_here_is_the_cause_of_what_another_node_felt_first(node):
    felt = Finding("rank-exit", "node 0 (gpu6): rank 0 (node 0) failed first: exit code 1")
    found = outcome(node, TORCHRUN.format(-9), 137, killed=True, lost=felt)
    assert "rank 1 (node 0) failed first: killed by SIGKILL" in found.message and felt.what not in found.message
    assert felt.what in outcome(node, TORCHRUN.format(1), 137, killed=True, lost=felt).message


@pytest.mark.parametrize("lost", [None, Finding("peer-gone", "node 1 (gpu1): a rank failed")])
def test_a_killed_launcher(node, lost):
    found = outcome(node, "", 128 + signal.SIGKILL, lost=lost)
    assert found.message.startswith("error: torchrun, the launcher of node 0, was killed by SIGKILL")
    assert found.reason.code == "launcher-killed" and found.exit_code == 1


def test_a_rank_that_has_waited_in_vain_is_not_called_the_first_to_fail(node):
    node.log(0, 1).write_text(
        "of the start before\n[rank1]: RuntimeError: [unbound_buffer.cc:78] Timed out waiting 20000ms for recv "
        "operation to complete\n"
    )
    found = outcome(node, TORCHRUN.format(1), 1)
    assert found.message.startswith(
        "error: rank 1 (node 0) waited in vain for another rank, and ended with exit code 1: [rank1]: RuntimeError: "
    )
    assert found.reason.code == "peer-gone"
    node.log(0, 1).write_text("of the start before\nRuntimeError: Connection closed by peer\n")
    assert (
        "rank 1 (node 0) lost another rank, and ended with exit code 1" in outcome(node, TORCHRUN.format(1), 1).message
    )


CLOSED = (
    "W1120 16:32:52 torch/distributed/elastic/multiprocessing/api.py:908] Sending process {} closing signal SIGTERM\n"
)
LOST_OTHER = TRACEBACK.format(9, "loss.backward()", LOST)
FIRST = """\
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 4710)
"""


def ended_before(node, agent_says, **ended):
    node.log(0, 0).write_text(LOST_OTHER)
    node.log(0, 1).write_text("step 6 loss 0.5\nstep 7 loss 0.4\n")
    node.agent_log(0).write_text(agent_says)
    how = {"returncode": 1, "signal": None, "killed": False, "ranks": {4710: 0, 4711: 1}, **ended}
    return program_end(Started(node, "run", 0, "torchrun", 2, 2, is_ours=False), Ended(**how))


def test_a_rank_that_ended_well_before_the_others_lost_it_is_the_cause(node):
    found = ended_before(node, FIRST)
    said = "rank 1 (node 0) ended with exit code 0 after step 7 while other ranks still needed it"
    assert found.message.startswith(f"error: {said}\n") and "drop_last=True" in found.message
    assert (found.exit_code, found.reason.code, found.reason.who.rank) == (1, "rank-left", 1)


def test_a_rank_that_the_launcher_ended_afterwards_is_not(node):
    found = ended_before(node, CLOSED.format(4711) + FIRST)
    assert found.reason.code == "peer-gone" and found.reason.who.rank == 0


# What another node said that it felt, while the ranks of this one had ended.
FELT = Finding("peer-gone", "node 1 (gpu1): rank 2 (node 1) lost another rank, and ended with exit code 1")


def test_ranks_that_had_ended_before_another_node_lost_them(node):
    found = ended_before(node, "", returncode=0, lost=FELT)
    assert found.reason.what.startswith("ranks 0, 1 (node 0) ended with exit code 0 after step 7 while other ranks")
    assert found.exit_code == 1


@pytest.mark.parametrize(
    ("agent_says", "alive"), [("failed (exitcode: -9) local_rank: 1 (pid: 4711) of binary\n", ()), ("", (4710, 4711))]
)
def test_ranks_that_still_ran_or_failed_had_not(node, agent_says, alive):
    found = ended_before(node, agent_says, returncode=-9, killed=True, lost=FELT, alive=frozenset(alive))
    assert found.reason is FELT and found.exit_code == 1


CRASH = """\
step 3 loss 0.5
Fatal Python error: Segmentation fault

Thread 0x00007f1 (most recent call first):
  File "/venv/lib/python3.11/site-packages/allranks/evidence/in_program/allranks_answers.py", line 129 in _answer

Current thread 0x00007f2 (most recent call first):
  File "/home/ana/train.py", line 12 in main

Extension modules: numpy._core._multiarray_umath, torch._C (total: 2)
"""


def test_of_a_crash_the_programs_own_stack_is_shown_and_what_helps(node):
    node.log(0, 1).write_text("of the start before\n" + CRASH)
    found = outcome(node, TORCHRUN.format(-11), 1)
    shown = [one.text for one in found.reason.evidence]
    assert shown == CRASH.splitlines()[1:2] + CRASH.splitlines()[6:8]
    assert "what helps: Reinstall the compiled extension" in found.message


@pytest.mark.parametrize(("log", "is_silent"), [("step 7 loss 0.4\n", True), ("", True), ("no data\n", False)])
def test_a_rank_that_ends_without_a_word_is_said_to(node, log, is_silent):
    node.log(0, 1).write_text("of the start before\n" + log)
    found = outcome(node, TORCHRUN.format(3), 1)
    assert ("it printed no error: look for sys.exit(3) or os._exit(3)" in found.message) == is_silent


def test_what_the_program_refuses_of_its_options_is_not_the_launchers(node):
    node.log(0, 1).write_text("of the start before\ntrain.py: error: unrecognized arguments: --lrr 3\n")
    found = outcome(node, TORCHRUN.format(2), 1)
    assert "that is: the program train.py was given an option that it does not know" in found.message


@pytest.mark.parametrize(("then", "is_spoilt"), [("", True), ("step 6 loss 0.4\n", False)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_no_number_at_the_end_is_warned_of(node, rank, then, is_spoilt):
    before = "of the start before\n" if rank == 1 else ""
    node.log(0, rank).write_text(f"{before}step 4 loss 0.5\nstep 5 loss nan\n{then}")
    found = outcome(node, "", 0)
    assert (found.exit_code, found.reason) == (0, None)
    said = f"warning: the loss that rank {rank} prints is not finite: step 5 loss nan\n"
    assert found.message.startswith(said) if is_spoilt else found.message == ""


SCALAR, NINE = "all_reduce of scalar float", "all_reduce of 9 float"


@pytest.mark.parametrize(
    ("entered", "said", "rank"),
    [
        ((NINE, 0, SCALAR, 3), f"rank 1 (node 0) entered {NINE}, where {SCALAR} had come 3 times before; rank 0", 1),
        ((SCALAR, 3, SCALAR, 3), f"rank 0 (node 0) did not enter {SCALAR}, which had come there 3 times before; ", 0),
        ((NINE, 0, SCALAR, 1), None, 0),  # once is no habit
        ((NINE, "x", [], 3), None, 0),
    ],
)
def test_of_ranks_at_one_place_it_is_told_who_entered_what_it_never_did(node, entered, said, rank):
    node.agent_log(0).with_name("launch.json").write_text("{}")
    node.log(0, 0).write_text(ABORTED)
    lost = TRACEBACK.format(12, "loss.backward()", LOST)
    node.log(0, 1).write_text("of the start before\n" + lost)
    told = dict(zip(("entered", "times", "usual", "usual_times"), entered, strict=True))
    node.log(0, 1).with_name("rank-00001.entered.json").write_text(json.dumps(told))
    ended = TORCHRUN.replace("Root Cause", "").replace("rank      : 0", "Root Cause rank      : 0").format(-6)
    found = outcome(node, ended.replace("exitcode  : 1 ", "exitcode  : -6 "), 1)
    head = found.message.splitlines()[0]
    assert head.startswith(f"error: ranks do not enter the same collectives: {said}" if said else "error: rank 0 (node")
    assert found.reason.who.rank == rank


def test_a_rank_that_somebody_ended_goes_before_those_that_lost_it(node):
    found = outcome(node, TORCHRUN.format(-15), 1, killed=True, lost=FELT)
    assert (found.reason.code, found.reason.who.rank) == ("rank-killed", 1)
    assert "killed by SIGTERM, which its launcher did not send: somebody, or a scheduler, did" in found.message
