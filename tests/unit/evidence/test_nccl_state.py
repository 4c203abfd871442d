"""What NCCL's RAS service knows goes into the diagnosis. Answers are written from the examples of NCCL's documentation
(ras.rst of 2.24, 2.29 and 2.31), not recorded."""

import copy
import json

import pytest

from allranks.doctor import causes
from allranks.evidence.diagnose import diagnose
from allranks.evidence.nccl_state import nccl_state, shortened
from allranks.findings import Finding

STATUS = {"init_state": 0, "async_error": 0, "finalize_called": False, "destroy_flag": False, "abort_flag": False}


def rank(number: int, count: int = 812) -> dict:
    return {
        "rank": number,
        "host": f"10.0.0.{number}",
        "pid": 100 + number,
        "cuda_dev": 0,
        "nvml_dev": 0,
        "status": dict(STATUS),
        "collective_counts": {"Broadcast": 3, "AllGather": 40, "AllReduce": count},
    }


def answer(*ranks: dict, missing: tuple[dict, ...] = ()) -> dict:
    communicator = {"hash": "0xae94", "size": len(ranks) + len(missing), "ranks": ranks, "missing_ranks": missing}
    communicator = copy.deepcopy({**communicator, "ranks": list(ranks), "missing_ranks": list(missing)})
    return {"json": {"nccl_version": "2.29.1", "communicators": [communicator]}}


def summaries(nccl: dict, num_ranks: int = 3) -> list[dict]:
    nodes = [
        {"node": node, "host": f"gpu{node}", "ranks": [{"rank": node, "pid": 100 + node}]} for node in range(num_ranks)
    ]
    return [{**nodes[0], "nccl": nccl}, *nodes[1:]]


def lines(nccl: dict) -> tuple[str, ...]:
    told = summaries(nccl)
    return nccl_state(told, {one["ranks"][0]["rank"]: one["ranks"][0] for one in told}).lines


def gone(number: int, **status: bool) -> dict:
    return {**rank(number), "status": {"unresponsive": False, "considered_dead": False, **status}}


def test_a_healthy_job_says_nothing():
    assert lines(answer(rank(0), rank(1), rank(2))) == ()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            answer(rank(0), rank(1, 811), rank(2)),
            "NCCL: rank 1 entered 811 AllReduce, the others 812 (communicator 0xae94 of 3 ranks)",
        ),
        (
            answer(rank(0), rank(1, 811), rank(2, 809)),
            "NCCL: rank 1, rank 2 entered 809 to 811 AllReduce, the others 812 (communicator 0xae94 of 3 ranks)",
        ),
        (
            answer(rank(0), rank(2), missing=(gone(1, unresponsive=True),)),
            "NCCL: no answer: rank 1 (communicator 0xae94 of 3 ranks)",
        ),
        (
            answer(rank(0), rank(2), missing=(gone(1, unresponsive=True, considered_dead=True),)),
            "NCCL: dead, for NCCL has not reached it for a minute: rank 1 (communicator 0xae94 of 3 ranks)",
        ),
        (
            answer(rank(0), {**rank(1), "status": {**STATUS, "async_error": 6}}, rank(2)),
            "NCCL: an error of the network or of a GPU (ncclResult_t 6): rank 1 (communicator 0xae94 of 3 ranks)",
        ),
        (
            answer(rank(0), {**rank(1), "status": {**STATUS, "init_state": 7}}, rank(2)),
            "NCCL: still being connected: rank 1 (communicator 0xae94 of 3 ranks)",
        ),
        (
            answer(rank(0), {**rank(9), "status": {**STATUS, "abort_flag": True}}),
            "NCCL: aborting: pid 109 on 10.0.0.9 (communicator 0xae94 of 2 ranks)",
        ),
    ],
    ids=["fewer", "fewer of several", "silent", "dead", "error", "connecting", "not ours"],
)
def test_what_it_knows_is_a_line(told, said):
    assert lines(told) == (said,)


def test_the_text_of_an_older_version_gives_its_errors_and_warnings():
    text = (
        "Job summary\n===========\n\n  Nodes  Processes\n      4          8\n\nErrors\n======\n\nINCOMPLETE\n"
        "  Missing communicator data from 1 job process\n  Process 3487984 on node 172.16.64.213 managing GPU 5\n\n"
        "Warnings\n========\n\nTIMEOUT\n  Encountered 2 communication timeouts while gathering communicator data\n"
    )
    assert lines({"text": text}) == (
        "NCCL: INCOMPLETE",
        "NCCL: Missing communicator data from 1 job process",
        "NCCL: Process 3487984 on node 172.16.64.213 managing GPU 5",
        "NCCL: TIMEOUT",
        "NCCL: Encountered 2 communication timeouts while gathering communicator data",
    )


def test_of_its_diagnostics_what_is_no_ok():
    found = {"diagnostics": ["[OK] ECC: no errors", "[INFO] NVLink: 1 inactive link(s) on rank(s) {3}"]}
    assert lines({**answer(rank(0)), "diagnostics": found}) == ("NCCL: NVLink: 1 inactive link(s) on rank(s) {3}",)


@pytest.mark.parametrize(
    "told", [None, {"json": 7}, {"json": {"communicators": [{"ranks": [3], "missing_ranks": {}}]}}]
)
def test_what_is_no_such_answer_is_passed_over(told):
    assert lines(told) == ()


def test_where_nothing_else_tells_who_is_behind_it_is_whom_nccl_names():
    late = Finding(causes.HANG, "rank 0 (node 0, gpu0) has been in phase train for 241 s")
    finding = diagnose(summaries(answer(rank(0), rank(1, 811), rank(2))), [late])
    assert finding.what.startswith("perhaps: by NCCL's own account rank 1 (node 1, gpu1) entered 811 AllReduce")
    assert (finding.who.rank, finding.who.node, finding.is_certain) == (1, 1, False)
    assert late.what in [one.text for one in finding.evidence]


def test_of_many_ranks_those_that_differ_are_told_on():
    ranks = [{**rank(number, 811 if number == 700 else 812), "pid": 5000 + number} for number in range(1024)]
    short = shortened(answer(*ranks, missing=(gone(1, unresponsive=True),)))
    assert len(json.dumps(short)) < 5000
    assert lines(short) == (
        "NCCL: no answer: rank 1 (communicator 0xae94 of 1025 ranks)",
        "NCCL: pid 5700 on 10.0.0.700 entered 811 AllReduce, the others 812 (communicator 0xae94 of 1025 ranks)",
    )
    assert shortened(answer(*ranks))["json"]["communicators"][0]["ranks"][1]["pid"] == 5700
    assert shortened(answer(rank(0), rank(1)))["json"]["communicators"] == []
    assert shortened({"why": "nobody there"}) == {"why": "nobody there"}
