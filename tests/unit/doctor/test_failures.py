"""What a start failed of is kept, and one that fails alike says so: to the terminal, and to the doctor."""

import json

import pytest

from allranks.doctor import causes
from allranks.doctor.attempt import Started
from allranks.doctor.failures import failures_of, seen_before
from allranks.doctor.of_run import diagnosis_of_run
from allranks.doctor.verdict import Verdict
from allranks.exit_codes import PREEMPTED
from allranks.findings import Finding, Who
from allranks.observe import EventLog, RunDir
from allranks.observe.events import StepEvent


def killed(pid=7, rank=1):
    what = f"rank {rank} (node 0) failed first: killed by SIGKILL (pid {pid})"
    return Finding(causes.RANK_KILLED, what, who=Who(0, rank), known_at=0)


@pytest.fixture
def fails(tmp_path):
    """A start that came to that step and failed of this: what its terminal reads below the message."""

    def fail(run_id, step, reason=None, code=1, is_ours=True, prints=""):
        reason = reason or killed(pid=hash(run_id) % 30000)
        run = RunDir(tmp_path / "run")
        run.logs(0).mkdir(parents=True, exist_ok=True)
        if is_ours:
            log = EventLog(run.events(0), 0, run_id=run_id)
            for number in range(1, step + 1):
                log.write(StepEvent(step=number))
            log.close()
        run.log(0, 0).write_text(prints)
        run.live.write_text(json.dumps({"run_id": run_id, "ended": {"exit_code": 1, "finding": reason.to_message()}}))
        started = Started(run, run_id, 0, "torchrun", 2, 2, is_ours=is_ours)
        verdict = seen_before(Verdict(code, reason, "error: it failed"), started)
        assert verdict.message.startswith("error: it failed") and verdict.reason == reason
        return verdict.message.removeprefix("error: it failed")

    return fail


def test_the_same_failure_after_the_same_step_twice_is_told(fails, tmp_path):
    assert fails("first", 4) == ""
    assert diagnosis_of_run(tmp_path / "run").restart.verdict == "may-pass"
    assert fails("second", 9) == ""
    told = fails("third", 4)
    assert told.startswith("\n  but the start of ") and "failed in the same way after the same step, 4" in told
    diagnosis = diagnosis_of_run(tmp_path / "run")
    assert diagnosis.restart.verdict == "hopeless"
    assert any("failed in the same way after the same step, 4" in note for note in diagnosis.notes)
    assert [(one.run_id, one.restart.step) for one in failures_of(RunDir(tmp_path / "run"))] == [
        ("first", 4),
        ("second", 9),
        ("third", 4),
    ]
    assert fails("fourth", 5) == "", "it went on"
    assert diagnosis_of_run(tmp_path / "run").restart.verdict == "may-pass"


def test_before_the_first_step_counts_too(fails):
    assert fails("first", 0) == ""
    assert "before the first step, too" in fails("second", 0, killed(rank=0)), "whichever rank it hit"


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({}, {"reason": Finding(causes.NODE_LOST, "node 1 (gpu1) was lost: no sign of life for 10 s", who=Who(1))}),
        ({"code": PREEMPTED}, {}),
        ({"reason": Finding(causes.INTERRUPTED, "SIGINT: stopped", who=Who(0))}, {}),
        ({"is_ours": False}, {"is_ours": False}),
    ],
    ids=["another failure", "preempted", "interrupted", "a program that tells no step"],
)
def test_what_is_not_the_same_is_not_told(fails, then, now):
    fails("first", 4, **then)
    assert fails("second", 4, **now) == ""


def test_of_anyones_program_what_it_prints_tells_the_step(fails, tmp_path):
    def fail(run_id, step, code=1):
        prints = "".join(f"step {number} loss 0.5\n" for number in range(1, step + 1))
        return fails(run_id, step, is_ours=False, prints=prints, code=code)

    assert fail("first", 4, code=7) == "" and fail("second", 9) == ""
    assert "failed in the same way after the same step, 4" in fail("third", 4)
    assert [one.restart.step for one in failures_of(RunDir(tmp_path / "run"))] == [4, 9, 4]


def test_what_a_restart_does_not_mend_anyway_is_not_told_again(fails):
    error = Finding(causes.RANK_ERROR, "rank 1 (node 0) failed first: the loss is not finite", who=Who(0, 1))
    fails("first", 4, error)
    assert fails("second", 4, error) == ""


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b"{}", b'{"t": "x"}', b'{"t":1,"run":1,"verdict', b"[" * 9999])
def test_damaged_lines_are_passed_over(fails, tmp_path, line):
    fails("first", 4)
    with (tmp_path / "run" / "failures.jsonl").open("ab") as file:
        file.write(line + b"\n")
    assert "after the same step, 4" in fails("second", 4)


def test_a_disk_that_takes_nothing_costs_no_verdict(fails, tmp_path):
    (tmp_path / "run" / "failures.jsonl").mkdir(parents=True)
    assert fails("first", 4) == ""
