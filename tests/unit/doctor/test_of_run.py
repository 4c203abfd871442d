"""A run of ours: what its launcher found, its events, logs and checks become one answer."""

import json
import os
import signal
import socket
import subprocess
import tarfile
import time
from dataclasses import replace

import pytest

from allranks.doctor import causes
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.diagnosis import HOPELESS, LIKELY
from allranks.doctor.of_run import diagnosis_of_run, is_run
from allranks.doctor.program_end import program_end
from allranks.doctor.with_rules import with_rules
from allranks.errors import UsageError
from allranks.findings import Evidence, Finding, Who
from allranks.live.live_file import write_own_end
from allranks.observe import RunDir

DISK = "Traceback (most recent call last):\n  File 'x'\nOSError: [Errno 28] No space left on device: '/data/x'\n"
GLOO = (
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:51858\n"
)


@pytest.fixture
def made(tmp_path):
    """A run directory with these logs of ranks of node 0 (by rank), ended with a finding, and what checks had found."""

    def make(logs, ended=None, checks=(), events=()):
        run = RunDir(tmp_path / "run")
        for rank, text in logs.items():
            run.log(0, rank).parent.mkdir(parents=True, exist_ok=True)
            run.log(0, rank).write_text(text)
        run.manifest.write_text("{}")
        run.live.write_text(json.dumps({"ended": {"exit_code": 1, "finding": ended and ended.to_message()}}))
        run.preflight.write_text(json.dumps({"findings": list(checks)}))
        for event in events:
            path = run.events(event["rank"])
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps({"v": 1, "t": 1.0, "run": "r"} | event) + "\n")
        return run.path

    return make


def bare(rank=1, code=causes.RANK_EXIT):
    return Finding(code, f"rank {rank} (node 0) failed first: exit code 1", who=Who(0, rank), known_at=0)


def test_a_rule_goes_before_a_bare_exit_code(made):
    told = diagnosis_of_run(made({0: GLOO, 1: DISK}, bare()))
    assert (told.cause, told.rank, told.node) == ("disk-full", 1, "0")
    assert told.evidence[0].file.endswith("rank-00001.log") and told.evidence[0].line == 3


def test_an_exception_of_the_rank_that_failed_goes_before_its_exit_code(made):
    raised = (
        "step 1\n" * 9
        + "[rank1]: Traceback (most recent call last):\n[rank1]:   File 'x'\n[rank1]: ValueError: bad 7\n"
    )
    told = diagnosis_of_run(made({0: GLOO, 1: raised}, bare()))
    assert (told.cause, told.rank, told.certainty) == ("exception", 1, "likely")
    assert "ValueError: bad 7" in told.title and told.evidence[0].text.endswith("ValueError: bad 7")
    told = diagnosis_of_run(made({0: GLOO, 1: raised}, bare(rank=0)))
    assert (told.cause, told.rank) == (causes.RANK_EXIT, 0), "it is another rank's"


def test_what_the_launcher_knows_goes_before_the_logs(made):
    own = Finding(
        causes.HANG,
        "rank 3 never entered all_reduce",
        who=Who(1, 3),
        evidence=[Evidence("data.py:33")],
        remedy="look there",
    )
    told = diagnosis_of_run(made({0: "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)\n"}, own))
    assert (told.cause, told.rank, told.remedy, told.certainty) == (causes.HANG, 3, "look there", "sure")
    assert told.evidence[0].text == "data.py:33"


def test_what_was_only_perhaps_so_stays_likely(made):
    perhaps = Finding(causes.HANG, "perhaps: rank 1: broadcast; rank 0: all_reduce", who=Who(1, 1), is_certain=False)
    assert diagnosis_of_run(made({0: "step 1\n"}, perhaps)).certainty == "likely"


def test_of_another_rank_a_rule_is_only_named_as_possible(made):
    told = diagnosis_of_run(made({0: "step 1\n", 2: DISK}, bare(rank=1)))
    assert (told.cause, told.rank) == (causes.RANK_EXIT, 1)
    assert told.others == ("disk-full",)


def test_a_rank_that_felt_another_go_is_not_the_cause_that_a_log_names(made):
    told = diagnosis_of_run(made({0: GLOO, 2: DISK}, bare(rank=0, code=causes.PEER_GONE)))
    assert (told.cause, told.rank) == ("disk-full", 2)


def test_errors_of_ranks_count_where_the_launcher_left_no_word(made):
    events = [{"rank": 1, "kind": "error", "message": "[Errno 28] No space left on device: '/d/x'", "type": "OSError"}]
    told = diagnosis_of_run(made({0: "step 1\n"}, events=events))
    assert (told.cause, told.rank) == ("disk-full", 1)


def test_what_the_kernels_said_while_ranks_hung_stands_beside_the_answer(made):
    run = made({0: "step 1\n"}, Finding(causes.HANG, "rank 1 never entered all_reduce", who=Who(1, 1)))
    kernels = {
        "0": ["2026-11-29 07:00:00Z eth0: something that nobody knows", 7, None],
        "1": ["2026-11-29 07:00:01Z nfs: server nas1 not responding, still trying"],
    }
    for node, lines in kernels.items():
        folder = run / "evidence" / "20261129-070100" / f"node-{node}"
        folder.mkdir(parents=True)
        (folder / "node.json").write_text(json.dumps({"host": f"gpu{node}", "kernel": lines}))
    told = diagnosis_of_run(run)
    assert (told.cause, told.rank) == (causes.HANG, 1)
    (note,) = [one for one in told.notes if "kernel" in one]
    assert note.startswith("the kernel of gpu1 said meanwhile: ") and note.endswith(" (nfs-not-responding)")


def test_of_a_loss_that_is_no_number_the_rank_is_named_that_had_it(made):
    said = "error (rank {}): step 4: the loss is not finite (nan) on rank 1; stopped before a checkpoint\n"
    told = diagnosis_of_run(made({0: said.format(0), 1: said.format(1)}, bare(code=causes.RANK_ERROR)))
    assert (told.cause, told.rank) == ("nan-loss", 1)


def test_of_a_gradient_that_is_no_number_a_rule_says_what_helps(made):
    said = "step 3: the gradient's norm is nan although the loss (8.3178) is finite on every rank; stopped"
    error = {"kind": "error", "rank": 1, "type": "AllranksError", "message": said}
    own = Finding(causes.RANK_ERROR, f"rank 1 (node 0) failed first: {said}", who=Who(0, 1), known_at=0, said=said)
    told = diagnosis_of_run(made({1: ""}, own, events=[error]))
    assert (told.cause, told.rank) == ("nan-loss", 1) and "learning_rate" in told.remedy


def test_that_no_rule_knows_our_own_words_is_not_held_against_them(made):
    said = "no training examples are left after dropping the long ones"
    error = {"kind": "error", "rank": 1, "type": "AllranksError", "message": said}
    own = Finding(causes.RANK_ERROR, f"rank 1 (node 0) failed first: {said}", who=Who(0, 1), known_at=0, said=said)
    told = diagnosis_of_run(made({1: ""}, own, events=[error]))
    assert said in told.title and "No rule knows" not in told.not_proven


def test_what_the_checks_had_found_of_that_node_is_told(made):
    found = Finding("gpu.driver", "its driver differs", severity="warning").to_message()
    checks = [found | {"nodes": ["node 0 (gpu1)"]}, found | {"nodes": ["node 1 (gpu2)"], "what": "another"}]
    told = diagnosis_of_run(made({1: DISK}, bare(), checks))
    assert [note for note in told.notes if "checks" in note] == [
        "the checks had found, of node 0 (gpu1): its driver differs (gpu.driver)"
    ]


def test_what_follows_from_a_failure_is_not_shown_as_its_evidence(made):
    said = (Evidence("step 3 loss 1.1", "rank-00001.log"),)
    own = replace(bare(), evidence=said)
    told = diagnosis_of_run(made({0: GLOO, 1: "step 3 loss 1.1\n"}, own))
    assert told.evidence == said and [one.id for one in told.explained] == ["peer-gone"]


@pytest.mark.parametrize("num_steps", [1, 9000])
def test_what_a_rank_said_in_its_events_is_placed_where_it_stands(made, num_steps):
    """Also where a record is too long to be looked at from its beginning."""
    steps = [{"rank": 1, "kind": "step", "step": step, "loss": 1.0, "filled": "x" * 100} for step in range(num_steps)]
    phase = {"rank": 1, "kind": "phase", "phase": "train"}
    error = {"rank": 1, "kind": "error", "type": "OSError", "message": "[Errno 28] No space left on device"}
    run = made({1: ""}, events=[phase, *steps, phase, error])
    (shown,) = diagnosis_of_run(run).evidence
    assert "No space left" in RunDir(run).events(1).read_text().splitlines()[shown.line - 1]


def test_a_bundle_is_read_as_its_run_and_nothing_is_written_beside(made, tmp_path):
    run = made({0: GLOO, 1: DISK}, bare())
    bundle = tmp_path / "run-bundle.tar.gz"
    with tarfile.open(bundle, "w:gz") as file:
        file.add(run, "run-bundle")
    assert is_run(bundle) and is_run(run)
    told = diagnosis_of_run(bundle)
    assert told.cause == "disk-full" and told.evidence[0].file == f"{bundle}/logs/node-0/rank-00001.log"
    (tmp_path / "evil").write_text("x")
    with tarfile.open(bundle, "w:gz") as file:
        file.add(tmp_path / "evil", "../../evil-outside")
    with pytest.raises(UsageError):
        diagnosis_of_run(bundle)
    assert not (tmp_path.parent.parent / "evil-outside").exists()


@pytest.mark.parametrize("content", [b"", b"[", b"\xff\xfe\x00", b"[1]", b'{"ended": {"finding": 3}, "findings": 7}'])
def test_damaged_records_are_passed_over(made, content):
    run = made({1: DISK}, bare())
    for file in ("live.json", "preflight.json", "manifest.json"):
        (run / file).write_bytes(content)
    assert diagnosis_of_run(run).cause == "disk-full"


@pytest.fixture
def ended(tmp_path):
    def of(log, code=1):
        run = RunDir(tmp_path / "run")
        run.logs(0).mkdir(parents=True)
        run.log(0, 1).write_text(log)
        run.agent_log(0).write_text(
            "Root Cause (first observed failure):\n[0]:\n"
            f"  rank      : 1 (local_rank: 1)\n  exitcode  : {code} (pid: 1)\n"
        )
        started = Started(run, "r", 0, "torchrun", 2, 2, is_ours=False)
        return program_end(started, Ended(1, None, False)), started

    return of


def test_a_run_that_failed_says_what_a_rule_knows(ended):
    verdict, started = ended(DISK)
    known = verdict.reason.remedy.splitlines()[:2]  # which the other nodes are told, too
    assert [line.split(":")[0] for line in known] == ["that is", "what helps"]
    assert all(line in verdict.message for line in known)
    assert with_rules(verdict, started) == verdict
    bare = replace(verdict, message="error: it failed")
    assert with_rules(bare, started).message == "\n  ".join(["error: it failed", *known])


@pytest.mark.parametrize("log", ["ValueError: bad batch 17\n", GLOO, "", "step 1\n" * 50])
def test_nothing_is_added_where_no_rule_knows_more(ended, log):
    assert "that is" not in ended(log)[0].message


def test_a_rank_that_was_killed_is_told_by_the_launcher_alone(ended):
    assert "that is" not in ended(DISK, code=-signal.SIGKILL)[0].message


def test_a_run_that_was_preempted_did_not_fail(made):
    events = [
        {"rank": rank, "kind": kind, **more}
        for rank, by in ((0, "SIGUSR1"), (1, "SIGUSR1"), (2, "a signal to another rank"))
        for kind, more in (("step", {"step": 7, "loss": 2.1}), ("exit", {"code": 75, "reason": f"preempted by {by}"}))
    ]
    path = made({0: "step 7  loss 2.1\n"}, events=events)
    nodes = [{"node": 0, "host": "gpu0", "ranks": [{"rank": 0}, {"rank": 1}]}, {"node": 1, "ranks": [{"rank": 2}]}]
    (path / "live.json").write_text(json.dumps({"ended": {"exit_code": 75, "finding": None}, "nodes": nodes}))
    told = diagnosis_of_run(path)
    assert (told.cause, told.certainty, told.rank, told.node) == (causes.INTERRUPTED, "sure", None, "gpu0")
    assert told.title.startswith("preempted by SIGUSR1 on node 0 (gpu0) after step 7: nothing failed")
    assert [one.text for one in told.evidence][-1] == "rank 2: preempted by a signal to another rank"
    assert told.restart.verdict == "may-pass" and "--auto-resume-from-checkpoints true" in told.remedy


def test_a_run_that_is_done_or_failed_was_not_preempted(made):
    path = made({0: "step 7\n"}, events=[{"rank": 0, "kind": "exit", "code": 75, "reason": "preempted by SIGTERM"}])
    for code in (0, 1):
        (path / "live.json").write_text(json.dumps({"ended": {"exit_code": code, "finding": None}, "nodes": 7}))
        assert diagnosis_of_run(path).cause != causes.INTERRUPTED
    (path / "live.json").write_text(json.dumps({"ended": {"exit_code": 75, "finding": None}, "nodes": ["x", {}]}))
    assert diagnosis_of_run(path).title.startswith("preempted by SIGTERM: nothing failed")


def test_a_node_that_is_named_by_its_rank_alone_is_told_by_its_host(made):
    full = Finding(causes.DISK, "the disk of run is full", who=Who(1), known_at=1)
    path = made({0: "step 7\n"}, full)
    assert diagnosis_of_run(path).node == "1"
    for nodes, node in (([{"node": 0, "host": "a"}, {"node": 1, "host": "gpu1"}], "gpu1"), ([7, {"node": 1}], "1")):
        live = json.loads((path / "live.json").read_text()) | {"nodes": nodes}
        (path / "live.json").write_text(json.dumps(live))
        assert diagnosis_of_run(path).node == node


def test_where_the_node_that_keeps_the_record_is_lost_the_others_know(made):
    agent = "Received 15 death signal, shutting down workers\n"
    events = [{"rank": 1, "kind": "step", "step": 3, "run": "r2"}]
    path = made({0: agent}, events=events)
    run = RunDir(path)
    (path / "live.json").write_text(json.dumps({"run_id": "r2", "ended": None, "nodes": [{"node": 0, "host": "gpu0"}]}))
    assert diagnosis_of_run(path).cause != causes.NODE_LOST
    lost = Finding(causes.NODE_LOST, "node 0 (gpu0) was lost: the connection was closed", who=Who(0), known_at=1)
    run.end(1).parent.mkdir(parents=True)
    for of_run, is_known in (("r1", False), ("r2", True)):
        write_own_end(run, 1, of_run, 1, lost)
        told = diagnosis_of_run(path)
        assert (told.cause == causes.NODE_LOST) is is_known
    assert (told.certainty, told.node, told.restart.verdict) == ("sure", "gpu0", "other-node")
    (path / "live.json").unlink()  # a disk of its own
    assert diagnosis_of_run(path).cause == causes.NODE_LOST
    (path / "live.json").write_text(json.dumps({"run_id": "r2", "ended": {"exit_code": 0, "finding": None}}))
    assert diagnosis_of_run(path).cause != causes.NODE_LOST


def done(path):
    (path / "live.json").write_text(json.dumps({"ended": {"exit_code": 0, "finding": None}}))
    return diagnosis_of_run(path)


def test_of_a_run_that_ended_well_nothing_failed_whatever_it_went_through(made):
    hung = Finding(causes.HANG, "rank 1 has been in phase train for 300 s")
    path = made({0: "step 7 loss 2.1\nstep 8 loss 2.0\n", 1: DISK}, bare())
    (path / "evidence" / "1").mkdir(parents=True)
    (path / "evidence" / "1" / "diagnosis.json").write_text(json.dumps(hung.to_message()))
    told = done(path)
    assert (told.cause, told.certainty, told.ended_well) == (None, "sure", True)
    assert told.title == "nothing failed: every rank ended with exit code 0, after step 8"
    assert "a log also says" in told.notes[0] and "disk" in told.notes[0]


def test_a_loss_that_is_no_number_counts_where_the_program_ended_well(made):
    told = done(made({0: "step 7 loss 2.1\nstep 8 loss nan\nstep 9 loss nan\n"}))
    assert (told.cause, told.ended_well) == ("nan-loss", False)


def test_an_earlier_start_is_only_told_of_where_there_was_one(made):
    path = made({1: "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed.\n"}, bare())
    live = json.loads((path / "live.json").read_text()) | {"run_id": "second"}
    (path / "live.json").write_text(json.dumps(live))
    failure = {"t": 1.0, "run": "first", "verdict": "hopeless", "fingerprint": "aa", "step": 3, "node": None}
    RunDir(path).failures.write_text(json.dumps(failure | {"run": "second"}) + "\n")
    assert not diagnosis_of_run(path).notes
    RunDir(path).failures.write_text(f"{json.dumps(failure)}\n{json.dumps(failure | {'run': 'second'})}\n")
    assert "failed in the same way" in diagnosis_of_run(path).notes[-1]


def test_of_a_signal_from_its_own_code_a_rule_says_what_helps(made):
    killed = Finding(causes.RANK_KILLED, "rank 1 (node 0) failed first: killed by SIGSEGV", who=Who(0, 1))
    told = diagnosis_of_run(made({1: "Fatal Python error: Segmentation fault\n"}, replace(killed, remedy="its log: x")))
    assert (told.cause, told.rank, told.certainty) == (causes.RANK_KILLED, 1, "sure")
    assert "compiled code" in told.meaning and told.remedy.endswith("\nits log: x")


def test_that_the_launcher_ends_ranks_tells_nothing_of_a_hang(made):
    hang = Finding(causes.HANG, "rank 1 (node 0) never entered all_reduce", who=Who(0, 1))
    told = diagnosis_of_run(made({0: "slurmstepd: error: *** STEP 4.0 ON a CANCELLED AT 2026-01-01 ***\n"}, hang))
    assert (told.cause, told.look_at, told.not_proven) == (causes.HANG, "", "")


@pytest.mark.parametrize(("blocks", "files", "is_full"), [(0, 9, True), (10**6, 0, True), (10**6, 9, False)])
def test_where_the_disk_of_a_run_is_full_that_is_told_if_nothing_else_is_known(
    made, monkeypatch, blocks, files, is_full
):
    path = made({0: "step 7 loss 2.1\n"})
    disk = os.statvfs_result((4096, 4096, 10**9, blocks, blocks, 100, files, files, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    told = diagnosis_of_run(path)
    assert (told.cause, told.certainty) == ((causes.DISK, "likely") if is_full else (None, "unknown"))
    assert told.node == (socket.gethostname() if is_full else None)
    assert diagnosis_of_run(made({0: "step 7 loss 2.1\n"}, bare())).cause == causes.RANK_EXIT


@pytest.fixture
def left(made):
    """A run whose table was last written `age` seconds ago by a launcher on `host` of that pid, and has no end."""

    def make(age, pid, host=None, log="step 3 loss 1.0\n"):
        folder = made({0: log})
        written = time.time() - age
        node = {"node": 0, "host": host or socket.gethostname(), "launcher_pid": pid, "ranks": []}
        RunDir(folder).live.write_text(json.dumps({"v": 1, "t": written, "run_id": "r", "nodes": [node]}))
        os.utime(RunDir(folder).live, (written, written))
        return folder

    return make


def ended_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_launcher_that_is_gone_without_a_word_is_told(left):
    told = diagnosis_of_run(left(20, ended_process()))
    assert (told.cause, told.certainty, told.node) == (causes.LAUNCHER_KILLED, LIKELY, socket.gethostname())
    assert "told nobody how the run ended" in told.title and "start the same command again" in told.remedy
    assert told.restart.verdict != HOPELESS
    for pid in (os.getpid(), 0, -1):  # it is there, and its disk may be slow; no process
        assert diagnosis_of_run(left(20, pid)).cause is None


def test_of_a_launcher_elsewhere_only_a_long_silence_tells(left, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # half a second more would be told as 401 s
    assert diagnosis_of_run(left(200, 1, "elsewhere")).cause is None
    told = diagnosis_of_run(left(400, 1, "elsewhere"))
    assert told.cause == causes.LAUNCHER_KILLED and told.node == "elsewhere" and "400 s" in told.title


def test_what_logs_word_goes_before_a_launcher_that_is_gone(left):
    assert diagnosis_of_run(left(20, ended_process(), log=DISK)).cause == "disk-full"


def test_a_run_that_goes_on_is_said_to(left):
    told = diagnosis_of_run(left(2, os.getpid()))
    assert told.cause is None and told.notes[0].startswith("the run goes on: its launcher on ")
    assert not any("goes on" in note for note in diagnosis_of_run(left(20, os.getpid())).notes)
