import os
import signal
from dataclasses import replace

import pytest

from allranks.config.load import resolve_mapping
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.first_failure import first_failure
from allranks.doctor.training_end import stopped_training, training_end
from allranks.findings import Finding
from allranks.launch.describe import what_came_before_ranks
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.observe import EventLog, RunDir
from allranks.observe.events import KINDS

# As torch 2.13 prints it, of two ranks of which the second was killed and the first lost its connection.
TORCHRUN_SAYS = """\
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
allranks.train FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-20_16:32:52
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 4711)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 4711
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-20_16:32:52
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 4710)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
"""


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


@pytest.fixture
def launch():
    return resolve(LaunchOptions(nproc_per_node=2), num_gpus=0)


def at(run, name):
    return run, name


def outcome(at, launch, ended, log_start=0, cfg=None):
    run, node = at
    started = Started(
        run,
        "now",
        node,
        launch.launcher,
        launch.nproc_per_node,
        launch.world_size,
        launch.max_nodes,
        log_starts={run.agent_log(node): log_start},
        told_of_none=what_came_before_ranks(launch, node),
    )
    return training_end(started, ended, cfg)


def stopped(run, run_id, received):
    return stopped_training(run, run_id, 0, received)


def events(run, rank, *kinds, run_id="now"):
    log = EventLog(run.events(rank), rank, run_id=run_id)
    for kind, fields in kinds:
        log.write(KINDS[kind](**fields))
    log.close()


def ended(returncode, received=None, killed=False):
    return Ended(returncode, received, killed)


def exits(run, *codes, run_id="now"):
    for rank, code in enumerate(codes):
        events(run, rank, ("step", {"step": 1}), ("exit", {"code": code}), run_id=run_id)


def test_ranks_that_finished_count_more_than_torchruns_status(run, launch):
    exits(run, 0, 0)
    assert outcome(at(run, 0), launch, ended(1)).exit_code == 0


def test_deepspeeds_launcher_returns_0_also_when_its_ranks_are_lost(run):
    launch = resolve(LaunchOptions(launcher="deepspeed", nproc_per_node=2), num_gpus=0)
    exits(run, 0)
    assert outcome(at(run, 0), launch, ended(0)).exit_code == 1
    exits(run, 0, 0)
    assert outcome(at(run, 0), launch, ended(0)).exit_code == 0


def test_preempted_ranks_make_a_preempted_run(run, launch):
    exits(run, 75, 75)
    assert outcome(at(run, 0), launch, ended(1, signal.SIGTERM)).exit_code == 75


def test_an_earlier_run_in_the_same_directory_says_nothing_about_this_one(run, launch):
    exits(run, 0, 0, run_id="before")
    assert outcome(at(run, 0), launch, ended(1)).exit_code == 1


def test_one_rank_that_did_not_finish_makes_a_failed_run(run, launch):
    exits(run, 0)
    assert outcome(at(run, 0), launch, ended(1)).exit_code == 1


def test_the_first_failing_rank_is_named_with_its_log(run, launch):
    run.logs(0).mkdir(parents=True)
    run.log(0, 1).write_text("Traceback\n")
    events(run, 1, ("error", {"message": "no space left"}), ("exit", {"code": 1}))
    events(run, 0, ("error", {"message": "connection closed by peer"}), ("exit", {"code": 1}))
    result = outcome(at(run, 0), launch, ended(1))
    assert result.exit_code == 1
    assert result.message.startswith("error: rank 1 (node 0) failed first: no space left")
    assert str(run.log(0, 1)) in result.message and str(run.logs(0)) in result.message


def test_a_usage_error_of_all_ranks_keeps_its_exit_code(run, launch):
    for rank in (0, 1):
        events(run, rank, ("error", {"message": "bad"}), ("exit", {"code": 2}))
    assert outcome(at(run, 0), launch, ended(1)).exit_code == 2


def test_a_rank_that_was_killed_is_named_although_it_could_say_nothing(run, launch):
    run.logs(0).mkdir(parents=True)
    run.agent_log(0).write_text("of a run before\n" + TORCHRUN_SAYS)
    run.log(0, 1).write_text("last words\n")
    events(run, 0, ("step", {"step": 1}), ("error", {"message": "connection closed by peer"}), ("exit", {"code": 1}))
    events(run, 1, ("step", {"step": 1}))
    message = outcome(at(run, 0), launch, ended(1)).message
    assert message.startswith("error: rank 1 (node 0) failed first: killed by SIGKILL (pid 4711)")
    assert "memory" in message and "connection closed" not in message
    assert "last words" in message


def test_a_rank_killed_here_is_the_cause_of_what_another_node_felt_first(run, launch):
    events(run, 1, ("step", {"step": 1}))
    felt = Finding("peer-gone", "node 0 (gpu6): rank 0 (node 0) failed: Connection reset by peer")
    run.agent_log(1).parent.mkdir(parents=True)
    run.agent_log(1).write_text("nothing to say")
    assert outcome(at(run, 1), launch, Ended(137, None, True, felt)).message.startswith(f"error: {felt.what}")
    run.agent_log(1).write_text(TORCHRUN_SAYS)
    found = outcome(at(run, 1), launch, Ended(137, None, True, felt))
    assert found.message.startswith("error: rank 1 (node 1) failed first: killed by SIGKILL") and found.exit_code == 1


def test_nodes_that_did_not_meet_are_told_where_and_why(run):
    launch = resolve(LaunchOptions(nnodes="2", node_rank=1, master_addr="10.0.0.9"), num_gpus=0)
    run.logs(1).mkdir(parents=True)
    run.agent_log(1).write_text("an old failure\nTimed out after 60 seconds waiting for clients. 1/2 clients joined.\n")
    start = len("an old failure\n")
    result = outcome(at(run, 1), launch, ended(1), log_start=start)
    assert result.exit_code == 1
    assert "node 1 started no rank: the 2 nodes did not meet at 10.0.0.9:29500" in result.message
    assert "1/2 clients joined" in result.message and "an old failure" not in result.message


def test_stopped_before_the_first_step(run, launch):
    events(run, 0, ("phase", {"phase": "data"}))
    assert outcome(at(run, 0), launch, ended(-15, signal.SIGINT)).exit_code == 130
    assert outcome(at(run, 0), launch, ended(-15, signal.SIGTERM)).exit_code == 75


def test_killed_while_saving_is_a_failure(run, launch):
    exits(run, 75)
    assert outcome(at(run, 0), launch, ended(-9, signal.SIGTERM, killed=True)).exit_code == 1


def committed(run, rank, step, *more):
    events(run, rank, ("step", {"step": step}), ("checkpoint", {"step": step, "state": "committed"}), *more)


@pytest.mark.parametrize(("received", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("killed", [False, True])
def test_stopped_while_the_result_is_written(run, launch, received, code, killed):
    run.logs(0).mkdir(parents=True)
    run.agent_log(0).write_text(TORCHRUN_SAYS)
    for rank in (0, 1):
        committed(run, rank, 9, ("phase", {"phase": "export"}))
    result = outcome(at(run, 0), launch, ended(1, received, killed))
    assert result.exit_code == code
    assert "training is complete" in result.message and f"allranks export {run.path}" in result.message


def test_stopped_after_the_last_step_was_saved(run, launch):
    committed(run, 0, 9)
    result = outcome(at(run, 0), launch, ended(1, signal.SIGTERM))
    assert result.exit_code == 75 and "step 9 is saved" in result.message


def test_a_rank_that_died_with_unsaved_steps_is_a_failure(run, launch):
    committed(run, 0, 9, ("step", {"step": 10}))
    assert outcome(at(run, 0), launch, ended(1, signal.SIGTERM)).exit_code == 1


def test_an_export_that_failed_by_itself_is_a_failure(run, launch):
    committed(run, 0, 9, ("phase", {"phase": "export"}), ("error", {"message": "disk full"}), ("exit", {"code": 1}))
    result = outcome(at(run, 0), launch, ended(1))
    assert result.exit_code == 1 and "disk full" not in result.message.partition("first")[0]


def test_without_torchrun(run):
    assert stopped(run, "now", signal.SIGTERM).exit_code == 75
    assert "nothing was lost" in stopped(run, "now", signal.SIGINT).message
    events(run, 0, ("step", {"step": 1}))
    assert "are lost" in stopped(run, "now", signal.SIGINT).message


def killed(run, launch, memory):
    run.agent_log(0).parent.mkdir(parents=True)
    run.agent_log(0).write_text(TORCHRUN_SAYS)
    cfg = resolve_mapping({"base_model": "m", "datasets": [{"path": "d", "type": "alpaca"}], "learning_rate": 1e-4})
    sizes = {"parameters_bytes": 2**30, "gradients_bytes": 2**30, "optimizer_bytes": 2**31}
    events(run, 1, ("memory", {"device": "cpu", **sizes}), ("step", {"step": 1, "memory_bytes": 9 * 2**30}))
    return outcome(at(run, 0), launch, replace(ended(1), memory=memory), cfg=cfg)


def test_a_rank_that_the_kernel_killed_for_want_of_memory_is_told_with_what_it_held(run, launch):
    found = killed(run, launch, "its cgroup ran out of memory (the cgroup's limit: 9.0 GiB)")
    assert found.reason.code == "out-of-memory" and found.exit_code == 1
    lines = found.message.splitlines()
    assert lines[0] == (
        "error: rank 1 (node 0) failed first: killed by SIGKILL (pid 4711) by the kernel: its cgroup ran out of memory "
        "(the cgroup's limit: 9.0 GiB)"
    )
    assert lines[1:5] == [
        "  | parameters                 1.0 GiB",
        "  | gradients                  1.0 GiB",
        "  | optimizer states           2.0 GiB",
        "  | activations and the rest   5.0 GiB",
    ]
    assert "  to need less, what frees most first:" in lines and lines[-2].startswith("  all logs: ")
    assert "the same command would end in the same way" in lines[-1]


def test_a_kill_that_was_not_for_memory_says_so(run, launch):
    found = killed(run, launch, "")
    assert found.reason.code == "rank-killed" and "has killed nothing for want of memory" in found.message
    assert "to need less" not in found.message


def test_what_is_told_to_other_nodes_holds_the_message_itself(run, launch):
    events(run, 0, ("error", {"message": "no space left", "node": 0}), ("exit", {"code": 1}))
    result = outcome(at(run, 0), launch, ended(1))
    assert result.reason is not None and result.reason.what == "rank 0 (node 0) failed first: no space left"


@pytest.mark.parametrize("shared", [True, False])
def test_the_log_of_another_nodes_rank_is_named_where_that_rank_keeps_it(run, launch, tmp_path, shared):
    log = tmp_path / "logs" / "node-1" / "rank-00001.log"
    if shared:
        log.parent.mkdir(parents=True)
        log.write_text("Traceback\n")
    told = {"message": "ValueError: bad row", "node": 1, "host": "gpu1", "log": str(log)}
    events(run, 1, ("error", told), ("exit", {"code": 1}))
    events(run, 0, ("error", {"message": "Connection closed by peer", "node": 0}), ("exit", {"code": 1}))
    message = outcome(at(run, 0), launch, ended(1)).message
    assert f"its log: {log}{'' if shared else ' (on gpu1)'}\n" in message


@pytest.mark.parametrize(
    ("code", "again"),
    [
        ("node-lost", True),
        ("rank-killed", True),
        ("peer-gone", True),
        ("rank-error", False),
        ("rank-exit", False),
        ("disk", False),
    ],
)
@pytest.mark.parametrize("saved", [True, False])
def test_only_what_may_pass_is_worth_the_same_command_again(run, launch, code, again, saved):
    if saved:
        path = run.checkpoint(4)
        path.mkdir(parents=True)
        (path / "COMPLETE").touch()
    elsewhere = Finding(code, "node 1 (gpu1): step 7: the loss is not finite")
    cut = Ended(1, None, True, lost=elsewhere)
    message = outcome(at(run, 0), launch, cut).message
    assert ("the same command would end in the same way; once that is mended" in message) is not again
    assert ("start the same command again" in message) is again
    assert ("--auto-resume-from-checkpoints true" in message) is saved


FELT = {"message": "Read error [10.77.0.2]:50920: Connection reset by peer", "node": 0, "host": "gpu0"}


@pytest.mark.parametrize("told_by", ["what holds it", "the kernel"])
@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_launcher_that_was_killed_is_the_cause_of_what_another_node_felt(run, launch, by, heard, told_by):
    """On shared storage the other rank's error is all that any event tells; it may also have been heard of already."""
    events(run, 0, ("step", {"step": 3}), ("error", FELT), ("exit", {"code": 1}))
    events(run, 1, ("step", {"step": 3}))
    felt = Finding("peer-gone", f"node 0 (gpu0): rank 0 (node 0, gpu0) failed: {FELT['message']}", said=FELT["message"])
    code = 128 + by if told_by == "what holds it" else -by
    result = outcome(at(run, 1), launch, Ended(code, None, False, felt if heard else None, memory=""))
    assert result.message.startswith(f"error: torchrun, the launcher of node 1, was killed by {by.name}")
    assert result.reason.code == "launcher-killed" and result.may_pass
    for order in ([result.reason, felt], [felt, result.reason]):  # what node 0 makes of both
        assert first_failure(order) is result.reason


@pytest.mark.parametrize("code", [1, 128 + signal.SIGTERM, 128 + signal.SIGINT, 128, 255])
def test_a_launcher_that_ended_by_itself_or_as_it_was_asked_was_not_killed(run, launch, code):
    events(run, 0, ("step", {"step": 3}), ("error", FELT), ("exit", {"code": 1}))
    assert outcome(at(run, 1), launch, Ended(code, None, False, memory="")).reason.code == "peer-gone"


def test_a_launcher_that_the_kernel_killed_for_want_of_memory(run, launch):
    run.logs(1).mkdir(parents=True)
    result = outcome(at(run, 1), launch, Ended(137, None, False, memory="the node has 8 GB"))
    assert result.reason.code == "out-of-memory" and "by the kernel: the node has 8 GB" in result.message


TIMED_OUT = [
    "RuntimeError: [unbound_buffer.cc:78] Timed out waiting 10000ms for recv operation to complete",
    "RuntimeError: Wait timeout: recv from rank 2",
    "Rank 0 failed to pass monitoredBarrier in 60000 ms",
]


@pytest.mark.parametrize("message", TIMED_OUT)
def test_who_waited_is_not_blamed_and_who_did_not_come_is_named(run, launch, message):
    for rank in (0, 1, 2):
        events(run, rank, ("time_limit", {"seconds": 300}), ("phase", {"phase": "train"}), ("step", {"step": 7}))
    for rank in (0, 2):
        events(run, rank, ("error", {"message": message, "node": 0, "host": "gpu0"}), ("exit", {"code": 1}))
    run.logs(1).mkdir(parents=True)
    run.log(1, 1).write_text("Traceback\n")
    result = outcome(at(run, 0), launch, ended(1))
    assert "failed" not in result.message.splitlines()[0]
    assert f"rank 0 (node 0, gpu0) waited in vain for another rank: {message}" in result.reason.what
    absent = f"rank 1, in phase train after step 7, its log: {run.log(1, 1)}, did not say that it waited"
    assert absent in result.message and "longer than the 300 s that a collective may take" in result.message
    # The other node names it too, be it that it reads of it itself or that it is told.
    for told in (result.reason, replace(result.reason, remedy="")):
        other = outcome(at(run, 1), launch, Ended(143, None, True, told))
        assert other.message.count(absent) == 1 and "rank 2, in" not in other.message


def test_ranks_that_all_waited_blame_none_of_them(run, launch):
    for rank in (0, 1):
        events(run, rank, ("error", {"message": TIMED_OUT[0], "node": 0}), ("exit", {"code": 1}))
    assert "did not say that it waited" not in outcome(at(run, 0), launch, ended(1)).message


def test_a_rank_that_its_collectives_watchdog_aborted_has_waited_for_another(run, launch):
    """As NCCL's watchdog words it in torch 2.6 to 2.13; written down here, not measured on GPUs."""
    run.logs(0).mkdir(parents=True)
    run.agent_log(0).write_text(TORCHRUN_SAYS.replace("exitcode  : -9", "exitcode  : -6"))
    said = "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE) ran for 600010"
    run.log(0, 1).write_text(f"{said}\nterminate called\n")
    events(run, 0, ("phase", {"phase": "train"}), ("step", {"step": 1}))
    events(run, 1, ("phase", {"phase": "train"}), ("step", {"step": 1}))
    result = outcome(at(run, 0), launch, ended(1))
    assert result.reason.code == "peer-gone" and "rank 1 (node 0) waited in vain" in result.message
    assert "rank 0, in phase train after step 1" in result.message


@pytest.mark.parametrize("said", ["ModuleNotFoundError: No module named 'peft'", "ImportError: libcudart.so.12"])
def test_ranks_that_could_not_import_a_library_are_not_to_be_started_again_as_they_are(run, launch, said):
    run.agent_log(0).parent.mkdir(parents=True)
    run.agent_log(0).write_text(f"Traceback (most recent call last):\n{said}\n{TORCHRUN_SAYS.replace('-9', '1')}")
    result = outcome(at(run, 0), launch, ended(1))
    assert said in result.message and "the same command would end in the same way" in result.message
    run.agent_log(0).write_text("torch.distributed.DistNetworkError: Connection refused\n")
    assert outcome(at(run, 0), launch, ended(1)).may_pass


def test_a_run_whose_folder_was_removed_says_so(run, launch):
    result = outcome(at(run, 0), launch, ended(1))  # neither events nor the launcher's log
    assert result.reason.code == "disk" and "has lost the record of this run" in result.message
    assert "started no rank" not in result.message and "no rank reported" not in result.message


def test_an_abort_in_a_collective_tells_where_all_ranks_were_and_blames_none(run, launch):
    run.logs(0).mkdir(parents=True)
    run.log(0, 1).write_text(ABORTED)
    run.agent_log(0).write_text(TORCHRUN_SAYS.replace("-9 (pid", "-6 (pid"))
    traceback = 'Traceback:\n  File "/a.py", line 9, in f\nRuntimeError: Connection reset by peer\n'
    reset = {"message": "Connection reset by peer", "node": 0, "host": "gpu0", "traceback": traceback}
    events(run, 0, ("step", {"step": 3}), ("error", reset), ("exit", {"code": 1}))
    result = outcome(at(run, 0), launch, ended(1))
    assert result.message.startswith("error: rank 1 (node 0) was aborted in a collective at /a.py:5 in f: ")
    assert "\n  rank 0 (node 0, gpu0) was at /a.py:9 in f\n" in result.message
    assert "failed first" not in result.message


ABORTED = """\
Fatal Python error: Aborted

Thread 0x00007fd8aa8f8b80 (most recent call first):
  File "/x/site-packages/torch/distributed/distributed_c10d.py", line 3252 in all_reduce
  File "/a.py", line 5 in f
"""


def test_a_rank_that_ended_before_it_said_anything_is_named_and_not_a_rendezvous_that_was_well(run, launch):
    """torchrun lists it: the nodes have met. An import that fails does so again."""
    run.agent_log(0).parent.mkdir(parents=True)
    table = "Root Cause (first observed failure):\n  rank : 1 (local_rank: 1)\n  exitcode : 1 (pid: 4711)\n"
    run.agent_log(0).write_text(
        "/venv/bin/python: Error while finding module specification for 'allranks.train' (ModuleNotFoundError: No "
        f"module named 'allranks')\n{table}"
    )
    run.events(0).parent.mkdir(parents=True)
    found = outcome(at(run, 0), launch, ended(1)).reason
    assert found.what.startswith("rank 1 (node 0) ended with exit code 1 (pid 4711) before it said anything")
    assert (found.code, found.who.rank) == ("rank-error", 1)
    run.agent_log(0).write_text(table)
    assert outcome(at(run, 0), launch, ended(1)).reason.code == "node-error"


@pytest.mark.parametrize(
    ("blocks", "files", "is_full"), [(0, 9, True), (10**6, 0, True), (10**6, 9, False), (15, 9, True)]
)
def test_ranks_that_ended_without_a_word_on_a_full_disk(run, launch, monkeypatch, blocks, files, is_full):
    """Nothing of theirs could be written: neither events nor logs."""
    events(run, 0, ("step", {"step": 1}))
    run.agent_log(0).parent.mkdir(parents=True)
    told = os.statvfs_result((4096, 4096, 10**9, blocks, blocks, 100, files, files, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: told)
    found = outcome(at(run, 0), launch, ended(1)).reason
    assert (found.code == "disk") == is_full
    assert ("the disk of" in found.what) == is_full and (found.who.node == 0)
