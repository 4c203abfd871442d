"""How what ended a rank is told: to the user in words, to the record in full, to the launcher with its kind."""

import errno

import pytest

from allranks.cluster.identity import identify
from allranks.errors import CheckpointError, DiskError
from allranks.observe import EventLog, read_events
from allranks.train.failure import tell_failure
from allranks.train.save_failure import of_ranks

FULL = DiskError("step 2 is not saved: the disk is full", errno.ENOSPC, "node1")


def tell(tmp_path, error, rank=0):
    env = {"RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    log = EventLog(tmp_path / f"{rank}.jsonl", rank)
    with (tmp_path / f"{rank}.log").open("a") as text:
        code, _ = tell_failure(error, identify(env), log, text, lambda error: None)
    assert code == 1
    return list(read_events(log.path))[-1]


def test_a_save_that_some_ranks_disks_refuse_is_an_error_of_those_ranks_only(tmp_path):
    """Every rank raises it, but none that is well may be taken for the first to fail."""
    together = of_ranks({1: FULL, 3: FULL})
    assert str(together) == f"ranks 1, 3: {FULL}" and together.ranks == (1, 3)
    assert [tell(tmp_path, together, rank).code for rank in range(4)] == ["peer-gone", "disk", "peer-gone", "disk"]
    both = of_ranks({0: CheckpointError("of its own"), 2: FULL})
    assert both.ranks == (0, 2) and type(both) is CheckpointError
    assert of_ranks({0: FULL}) is FULL and FULL.ranks == (0,)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_disks_refusal_has_no_traceback_on_the_terminal_and_one_in_the_record(tmp_path, capsys, rank):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))
    event = tell(tmp_path, error, rank)
    said = capsys.readouterr().err
    assert said.startswith(f"error (rank {rank}): the run cannot go on: the disk is full") and said.count("\n") == 1
    assert event.code == "disk" and "OSError" in event.traceback
    assert "OSError" in (tmp_path / f"{rank}.log").read_text()


def test_a_fault_of_ours_keeps_its_traceback(tmp_path, capsys):
    event = tell(tmp_path, ValueError("a fault"))
    assert "ValueError: a fault" in capsys.readouterr().err and event.code is None and event.traceback


def test_a_rank_0_that_has_only_lost_another_one_keeps_its_traceback_off_the_terminal(tmp_path, capsys):
    """It would stand above the reason, and tell of a rank at which nothing failed."""
    error = RuntimeError("[pair.cc:553] Connection closed by peer [10.0.0.2]:4")
    event = tell(tmp_path, error)
    assert capsys.readouterr().err.splitlines() == [
        f"rank 0 has lost another rank: RuntimeError: {error}",
        f"  its traceback: {tmp_path / '0.log'}",
    ]
    assert str(error) in event.traceback and str(error) in (tmp_path / "0.log").read_text()
