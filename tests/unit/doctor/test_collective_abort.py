"""A rank that gloo aborted is not blamed for it: where all of them were in that collective is told instead."""

import pytest

from allranks.doctor.collective_abort import aborted_in_collective, with_other_places
from allranks.doctor.diagnosis import HOPELESS
from allranks.doctor.failures import restart_of
from allranks.doctor.ranks import first_of_ranks
from allranks.doctor.verdict import Left, advice, may_pass
from allranks.findings import Finding, Who
from allranks.observe.events import ErrorEvent, StepEvent

# As faulthandler wrote it, with torch 2.13 and gloo, of ranks that entered all_reduce with 8 and 9 numbers.
LOG = """\
Fatal Python error: Aborted

Thread 0x00007fd8aa69c6c0 (most recent call first):
  File "/venv/lib/python3.11/site-packages/allranks/train/evidence.py", line 89 in _answer
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Thread 0x00007fd8aa8f8b80 (most recent call first):
  File "/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 3252 in all_reduce
  File "/venv/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/home/ana/my loss.py", line 34 in forward
  File "/venv/lib/python3.11/site-packages/allranks/train/loop.py", line 180 in train
  File "<frozen runpy>", line 88 in _run_code

Extension modules: yaml._yaml, numpy._core._multiarray_umath
"""
LOST = """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/allranks/train/loop.py", line 180, in train
    read = loop.stats.push(
  File "/home/ana/my loss.py", line 37, in forward
    dist.all_reduce(x)
  File "/venv/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 83, in wrapper
    return func(*args, **kwargs)
RuntimeError: Read error [10.77.0.1]:22916: Connection reset by peer
"""


def lost(rank: int, message: str = "RuntimeError: Connection reset by peer", traceback: str | None = LOST):
    return ErrorEvent(rank=rank, node=rank, host=f"node{rank}", message=message, traceback=traceback)


def aborted() -> Finding:
    return Finding("rank-aborted", f"rank 0 (node 0) {aborted_in_collective(LOG)}", who=Who(0, 0), remedy="all logs: x")


def test_the_places_of_the_aborted_and_of_those_that_lost_it_are_told():
    told = with_other_places(aborted(), [lost(1), lost(2, message="ValueError: bad"), lost(3, traceback=None), lost(0)])
    assert told.what.startswith("rank 0 (node 0) was aborted in a collective at /home/ana/my loss.py:34 in forward: ")
    first, second, *rest = told.remedy.splitlines()
    assert first == "rank 1 (node 1, node1) was at /home/ana/my loss.py:37 in forward"
    assert second.startswith("all ranks have to enter the same collectives") and rest == ["all logs: x"]
    assert with_other_places(told, [lost(1)]) == told  # another node has said it already


def test_no_restart_mends_ranks_that_enter_different_collectives():
    told = with_other_places(aborted(), [lost(1)])
    assert not may_pass(told) and restart_of(told, 3).verdict == HOPELESS
    assert "the same command would end in the same way" in advice(told, Left(num_nodes=2))
    of_nccl = aborted_in_collective(LOG, uses_nccl=True)
    assert may_pass(Finding("rank-aborted", f"rank 0 (node 0) {of_nccl}", who=Who(0, 0)))


@pytest.mark.parametrize(
    "log",
    [
        "",
        "terminate called without an active exception\n",
        LOG.replace("Aborted", "Segmentation fault"),
        LOG.replace("torch/distributed", "torch/nn"),
        LOG.partition("Thread")[0],
    ],
)
def test_an_abort_elsewhere_is_none_of_a_collective(log):
    assert aborted_in_collective(log) is None


def test_a_stack_without_known_code_is_still_told():
    log = "\n".join(line for line in LOG.splitlines() if "ana" not in line and "loop.py" not in line)
    assert "at an unknown place" in (aborted_in_collective(log) or "")


def test_of_other_failures_nothing_is_added():
    other = Finding("rank-aborted", "rank 0 (node 0) failed first: killed by SIGABRT", who=Who(0, 0))
    assert with_other_places(other, [lost(1)]) is other


def steps(**done: int) -> list[StepEvent]:
    return [StepEvent(rank=int(rank[1:]), step=step) for rank, last in done.items() for step in range(1, last + 1)]


def test_a_rank_that_has_done_a_step_more_has_left_out_a_collective_of_it():
    told = with_other_places(aborted(), [*steps(r0=3, r1=4), lost(1)])
    assert told.who == Who(1, 1, "node1")
    assert told.what.startswith(
        "ranks do not enter the same collectives: rank 1 (node 1, node1) has left out a collective of step 4: it has "
        "done that step, and rank 0, without which it cannot be done, only step 3; rank 0 (node 0) was aborted in a "
    )
    assert with_other_places(told, [*steps(r0=3, r1=4), lost(1)]) == told  # another node has said it already


def test_the_aborted_rank_itself_may_be_the_one_that_has_left_it_out():
    told = with_other_places(aborted(), [*steps(r0=4, r1=3, r2=3), lost(1), lost(2)])
    assert told.who == Who(0, 0)
    assert "rank 0 (node 0) has left out a collective of step 4" in told.what
    assert "ranks 1, 2, without which it cannot be done, only step 3" in told.what


@pytest.mark.parametrize("events", [[], steps(r0=3), steps(r0=3, r1=3), steps(r1=4)])
def test_where_nothing_tells_which_of_two_ranks_differs_neither_is_blamed(events):
    told = with_other_places(aborted(), [*events, lost(1)])
    assert told.what.startswith("rank 0 (node 0) was aborted") and told.who == Who(0, 0)


def test_the_rank_that_is_elsewhere_than_all_others_is_named():
    other = LOST.replace('loss.py", line 37', 'loss.py", line 50')
    told = with_other_places(aborted(), [lost(1, traceback=LOST.replace("37", "34")), lost(2, traceback=other)])
    assert told.who == Who(2, 2, "node2")
    assert "rank 2 (node 2, node2) is elsewhere than the others, at /home/ana/my loss.py:34 in forward; " in told.what


@pytest.mark.parametrize("log", [LOG, "[rank0]:[E1128 ProcessGroupNCCL.cpp:1896] [PG ID 0] watchdog\n" + LOG])
def test_an_abort_under_nccl_is_not_told_in_gloos_words(log):
    told = aborted_in_collective(log, uses_nccl=log is LOG)
    assert told == (
        "was aborted in a collective at /home/ana/my loss.py:34 in forward: the collective ended the process; its log "
        "says why"
    )


def test_whether_a_rank_used_nccl_is_known_by_the_log_that_nccl_kept_of_it(tmp_path):
    log = tmp_path / "rank-00000.log"
    log.write_text(LOG)
    agent = "rank      : 0 (local_rank: 0)\n  exitcode  : -6 (pid: 77)\n"
    assert "gloo" in first_of_ranks(0, [], agent, lambda rank: log).what
    (tmp_path / "nccl").mkdir()
    (tmp_path / "nccl" / "rank-00000.77.log").write_text("")
    told = first_of_ranks(0, [], agent, lambda rank: log).what
    assert "was aborted in a collective at" in told and "gloo" not in told
