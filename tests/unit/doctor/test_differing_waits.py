"""Ranks whose watchdogs tell of different collectives under one number do not call the same ones."""

import pytest

from allranks.doctor.diagnosis import LIKELY
from allranks.doctor.read_logs import diagnosis_of_text


def timeout(rank, number, kind, given, *, group=""):
    of = f"[{group} Rank {rank}]" if group else f"[Rank {rank}]"
    return (
        f"[rank{rank}]:[E220 10:59:35.441597707 ProcessGroupNCCL.cpp:629] {of} Watchdog caught collective operation "
        f"timeout: WorkNCCL(SeqNum={number}, OpType={kind}, NumelIn={given}, NumelOut={given}, Timeout(ms)=600000) ran "
        "for 600039 milliseconds before timing out.\n"
    )


def answer(*lines):
    return diagnosis_of_text("".join(lines))


def test_other_sizes_under_one_number_are_unequal_collectives_likely():
    told = answer(timeout(0, 34, "ALLREDUCE", 512), timeout(1, 34, "ALLREDUCE", 1024), timeout(2, 34, "ALLREDUCE", 512))
    assert (told.cause, told.certainty) == ("unequal-collectives", LIKELY)
    assert [one.line for one in told.evidence] == [1, 2]


def test_so_are_other_operations():
    told = answer(timeout(0, 34, "ALLREDUCE", 512), timeout(1, 34, "_ALLGATHER_BASE", 512))
    assert told.cause == "unequal-collectives"


def test_lines_into_which_another_rank_wrote_tell_it_too():
    told = answer(
        timeout(0, 34, "ALLREDUCE", 512).replace("collective operation", "collective operatHF_HOME` is oldion"),
        timeout(1, 34, "ALLREDUCE", 8).replace(
            "ran for 600039 milliseconds before timing out", "timed out in blocking wait"
        ),
    )
    assert told.cause == "unequal-collectives"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([timeout(0, 34, "ALLREDUCE", 512), timeout(1, 34, "ALLREDUCE", 512)], id="the same"),
        pytest.param([timeout(0, 34, "ALLREDUCE", 512), timeout(1, 35, "ALLREDUCE", 8)], id="other numbers"),
        pytest.param([timeout(0, 34, "ALLREDUCE", 512), timeout(0, 34, "ALLREDUCE", 8)], id="one rank"),
        pytest.param([timeout(0, 34, "GATHER", 512), timeout(1, 34, "GATHER", 8)], id="may be unequal"),
        pytest.param(
            [
                timeout(0, 34, "ALLREDUCE", 512, group="PG ID 1 PG GUID 5"),
                timeout(1, 34, "ALLREDUCE", 8, group="PG ID 2 PG GUID 6"),
            ],
            id="other groups",
        ),
    ],
)
def test_what_may_be_in_order_is_only_a_time_out(lines):
    told = answer(*lines)
    assert (told.cause, told.symptom) == (None, "nccl-watchdog-timeout")


def test_what_failed_before_goes_before():
    told = answer(
        "[rank0]: RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n",
        timeout(1, 34, "ALLREDUCE", 512),
        timeout(2, 34, "ALLREDUCE", 8),
    )
    assert told.cause == "cuda-out-of-memory"
