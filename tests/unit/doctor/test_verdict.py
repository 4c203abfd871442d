"""Whatever ends an attempt has a reason, and all nodes give the same advice on it."""

import re
import signal
from pathlib import Path

import pytest

from allranks.disk import DiskError
from allranks.doctor import causes
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.node_errors import node_error, unexplained
from allranks.doctor.program_end import program_end, stopped_program
from allranks.doctor.training_end import own_end, stopped_training, training_end
from allranks.doctor.verdict import Verdict, left_by, with_elsewhere
from allranks.errors import ConfigError, RefusedError
from allranks.findings import Finding, Who, from_message
from allranks.observe import EventLog, RunDir
from allranks.observe.events import KINDS

GONE = "RuntimeError: Connection closed by peer"
TORCHRUN = "Root Cause (first observed failure):\n  rank : 1 (local_rank: 1)\n  exitcode : {} (pid: 4711)\n"
SIGNALS = [None, signal.SIGINT, signal.SIGTERM]
CODES = sorted(value for name, value in vars(causes).items() if name.isupper() and isinstance(value, str))


def started(path: Path, node: int, *, is_ours: bool = True, saved: bool = False) -> Started:
    run = RunDir(path / f"node{node}")
    run.logs(node).mkdir(parents=True, exist_ok=True)
    if saved:
        checkpoint = run.checkpoint(4)
        checkpoint.mkdir(parents=True)
        (checkpoint / "COMPLETE").touch()
    return Started(run, "now", node, "torchrun", 1, 2, num_nodes=2, is_ours=is_ours)


def events(of: Started, rank: int, *kinds: tuple[str, dict]) -> None:
    log = EventLog(of.run.events(rank), rank, run_id="now")
    for kind, fields in kinds:
        log.write(KINDS[kind](**fields))
    log.close()


def advice(message: str) -> str | None:
    """What a terminal says about another start, in one word; None if it says nothing. Raises where it says both."""
    again = bool(re.search(r"start the same command again|start it on all nodes again", message))
    mend = "the same command would end in the same way" in message
    assert not (again and mend), message
    return "again" if again else "mend" if mend else None


def told_to_others(verdict: Verdict) -> Finding:
    """As it arrives there."""
    assert verdict.reason is not None
    heard = from_message(verdict.reason.to_message())
    assert heard == verdict.reason
    return heard


def ways_of_training(path: Path) -> list[Verdict]:
    """Every combination of what the ranks said, how the launcher ended, who asked to stop, and whether we killed."""
    said = [
        (),
        (("phase", {"phase": "data"}),),
        (("step", {"step": 5}), ("error", {"message": "the loss is not finite", "node": 0}), ("exit", {"code": 1})),
        (("step", {"step": 5}), ("error", {"message": "full", "node": 0, "code": "disk"}), ("exit", {"code": 1})),
        (("step", {"step": 5}), ("error", {"message": GONE, "node": 0}), ("exit", {"code": 1})),
        (("error", {"message": "bad key", "node": 0}), ("exit", {"code": 2})),
        (("step", {"step": 5}), ("exit", {"code": 130})),
        (("step", {"step": 5}),),
    ]
    found = []
    for number, kinds in enumerate(said):
        for tail in ("", TORCHRUN.format(-9), TORCHRUN.format(-15)):
            for received in SIGNALS:
                for killed in (False, True):
                    of = started(path / f"{number}-{len(found)}", 0, saved=number % 2 == 0)
                    of.run.agent_log(0).write_text(tail)
                    events(of, 0, *kinds)
                    found.append(training_end(of, Ended(1, received, killed)))
        for received in (signal.SIGINT, signal.SIGTERM):
            found.append(stopped_training(of.run, "now", 0, received))
    return found


def ways_of_programs(path: Path) -> list[Verdict]:
    found = [stopped_program(0, received) for received in (signal.SIGINT, signal.SIGTERM)]
    for code in (7, -9, -6, -15, None):
        for received in SIGNALS:
            for killed in (False, True):
                of = started(path / f"{len(found)}", 0, is_ours=False)
                of.run.agent_log(0).write_text("" if code is None else TORCHRUN.format(code))
                found.append(program_end(of, Ended(1, received, killed)))
    return found


@pytest.mark.parametrize("saved", [True, False])
def test_whatever_ends_an_attempt_all_nodes_advise_the_same(tmp_path, saved):
    ways = [*ways_of_training(tmp_path / "trained"), *ways_of_programs(tmp_path / "run")]
    assert len({verdict.reason.code for verdict in ways if verdict.reason}) >= 9
    there, program = started(tmp_path / "there", 1, saved=saved), started(tmp_path / "other", 1, is_ours=False)
    for verdict in ways:
        if verdict.reason is None:
            assert verdict.exit_code in (0, 75)
            continue
        heard = told_to_others(verdict)
        for other in (
            training_end(there, Ended(137, None, True, heard)),
            program_end(program, Ended(1, None, True, heard)),
        ):
            assert other.may_pass == verdict.may_pass
            assert advice(other.message) == ("again" if verdict.may_pass else "mend"), (verdict, other)
        # A terminal may say nothing of another start, where a signal ended the run with steps that were not saved.
        assert advice(verdict.message) in (None, advice(other.message)), verdict


ERRORS = [
    ConfigError("no such key"),
    RefusedError("the nodes do not agree"),
    DiskError("the disk is full", 28),
    OSError(28, "No space left on device", "/data/x"),
    KeyError("a fault of ours"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_ends_a_node_outside_of_its_ranks_is_a_finding(error, tmp_path):
    reason = node_error(error, 0)
    assert (reason.who == Who(0) and str(error).strip("'") in reason.what) or isinstance(error, OSError)
    heard = from_message(reason.to_message())
    assert heard == reason
    other = training_end(started(tmp_path, 1), Ended(1, None, True, heard))
    may_pass = isinstance(error, KeyboardInterrupt)
    assert causes.may_pass(reason.code) == may_pass
    assert advice(other.message) == ("again" if may_pass else "mend")


def test_a_signal_before_the_start_is_no_crash():
    class Stopped(BaseException):
        pass

    assert node_error(Stopped("SIGTERM"), 1).what == "stopped by SIGTERM before the start"
    assert node_error(Stopped("SIGTERM"), 1).code == causes.INTERRUPTED


def test_a_failure_without_a_reason_cannot_be_told():
    for code in (1, 2, 3, 130, 143):
        with pytest.raises(ValueError, match="has a reason"):
            Verdict(code)


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (0, None, None),
        (75, None, None),
        (130, None, "again"),
        (1, {"message": "the loss is not finite"}, "mend"),
        (1, {"message": "full", "code": "disk"}, "mend"),
        (2, {"message": "bad key"}, "mend"),
    ],
)
@pytest.mark.parametrize("saved", [True, False])
def test_the_only_rank_says_how_to_go_on_where_it_has_saved(tmp_path, code, error, said, saved):
    of = started(tmp_path, 0, saved=saved)
    events(
        of, 0, ("step", {"step": 5}), *([("error", {**error, "node": 0})] if error else []), ("exit", {"code": code})
    )
    verdict = own_end(of, code)
    assert (verdict.reason is None) == (code in (0, 75)) and verdict.exit_code == code
    assert verdict.may_pass == (said != "mend")
    assert advice(verdict.message) == (said if saved else None)


@pytest.mark.parametrize("code", CODES)
def test_who_fails_second_advises_what_the_first_advises(code, tmp_path):
    """Two nodes fail, each for a reason of its own: the one that goes before decides on both."""
    here = started(tmp_path, 0)
    for own_code in CODES:
        own = training_end(here, Ended(1, None, True, Finding(own_code, "here", who=Who(0, 0))))
        elsewhere = Finding(code, "node 1 (b): there", who=Who(1, 1))
        both = with_elsewhere(own, elsewhere, left_by(here))
        assert both.reason in (own.reason, elsewhere)
        assert advice(both.message) == ("again" if causes.may_pass(both.reason.code) else "mend")


def test_a_node_that_does_not_say_why_it_failed_blames_nobody(tmp_path):
    reason = unexplained(1, "node 1 (gpu1)")
    assert reason.what == "node 1 (gpu1) failed, and did not say why" and causes.may_pass(reason.code)


class TestTheSameMessageOfAllRanks:
    """Rank 0 has printed its error itself; what the others raise alike is not printed once more."""

    def end(self, path, node, *messages, lost=None):
        of = started(path, node)
        for rank, (message, at) in enumerate(messages):
            events(of, rank, ("error", {"message": message, "node": at}), ("exit", {"code": 1}))
        return training_end(of, Ended(1, None, lost is not None, lost))

    @pytest.mark.parametrize("first", [0, 1])
    def test_on_node_0(self, tmp_path, first):
        of = started(tmp_path, 0)
        for rank in (first, 1 - first):
            events(of, rank, ("error", {"message": "full disk", "node": 0}), ("exit", {"code": 1}))
        message = training_end(of, Ended(1, None, False)).message
        assert message.startswith(f"error: rank {first} (node 0) failed first: its message is above\n")
        assert "full disk" not in message

    def test_where_another_node_tells_the_same(self, tmp_path):
        told = Finding("rank-error", "node 1 (b): rank 1 (node 1) failed first: full disk", said="full disk")
        there = self.end(tmp_path / "same", 0, ("full disk", 0), lost=told)
        assert there.message.count("full disk") == 0 and there.message.count("its message is above") == 1
        other = self.end(tmp_path / "other", 0, (GONE, 0), lost=told)
        assert "error: node 1 (b): rank 1 (node 1) failed first: full disk\n" in other.message

    def test_on_another_node_it_is_told_once(self, tmp_path):
        message = self.end(tmp_path, 1, ("full disk", 1)).message
        assert message.count("full disk") == 1

    def test_another_message_of_another_rank_is_told_whole(self, tmp_path):
        of = started(tmp_path, 0)
        events(of, 1, ("error", {"message": "row 7 is bad", "node": 0}), ("exit", {"code": 1}))
        events(of, 0, ("error", {"message": GONE, "node": 0}), ("exit", {"code": 1}))
        assert "rank 1 (node 0) failed first: row 7 is bad" in training_end(of, Ended(1, None, False)).message

    def test_two_nodes_that_fail_alike_tell_it_once(self, tmp_path):
        own = self.end(tmp_path, 1, ("other", 1), ("full disk", 1))
        own = self.end(tmp_path / "alike", 1, ("full disk", 1))
        first = Finding("disk", "node 0 (a): rank 3 (node 0) failed first: full disk", who=Who(0, 3), said="full disk")
        both = with_elsewhere(own, first, left_by(started(tmp_path / "left", 1)))
        assert both.message.count("full disk") == 1


def test_a_stopped_rank_of_which_two_nodes_know_is_told_once(tmp_path):
    mine = Finding(causes.RANK_STOPPED, "rank 1 (node 1, pid 7) is stopped", who=Who(1, 1))
    theirs = Finding(causes.RANK_STOPPED, "node 1: rank 1 (node 1, pid 7) is stopped, for 9 s", who=Who(1, 1))
    own = Verdict(1, mine, mine.what)
    assert with_elsewhere(own, theirs, left_by(started(tmp_path, 1))) is own
