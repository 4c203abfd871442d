"""Who failed first: by cause before consequence and by arrival, whatever the nodes' clocks say."""

from itertools import permutations
from pathlib import Path

import pytest

from allranks.doctor import causes
from allranks.doctor.first_failure import first_failure, goes_before
from allranks.doctor.ranks import first_of_ranks
from allranks.findings import Finding
from allranks.observe.events import ErrorEvent

# As torch 2.13 prints it.
WORKER = "  rank      : {} (local_rank: 0)\n  exitcode  : {} (pid: 4711)\n"
GONE = [
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:51234",
    "DistNetworkError: Connection reset by peer",
    "DistBackendError: NCCL error: remote process exited or there was a network error, ncclRemoteError",
    "BrokenPipeError: [Errno 32] Broken pipe",
    "RuntimeError: Gloo connectFullMesh failed with connection refused",
]


def error(rank, node, message, t):
    return ErrorEvent(rank=rank, node=node, host=f"gpu{node}", message=message, t=t)


def first(events, node=0, tail="", tmp="/nowhere"):
    return first_of_ranks(node, events, tail, lambda rank: Path(tmp, str(rank)))


@pytest.mark.parametrize(
    ("own", "others", "tail", "rank", "code"),
    [
        ([("OutOfMemoryError: 3 GiB", 5.0)], [(GONE[0], 5.1)], "", 0, causes.RANK_ERROR),
        ([(GONE[0], 5.0)], [("ValueError: bad row", 5.1)], "", 1, causes.RANK_ERROR),
        ([(GONE[0], 5.0)], [("ValueError: bad row", 5.1)], WORKER.format(0, -9), 0, causes.RANK_KILLED),
        ([(GONE[0], 5.0)], [], WORKER.format(1, -6), 1, causes.RANK_ABORTED),
        ([("ValueError: bad row", 5.0)], [], WORKER.format(1, -6), 0, causes.RANK_ERROR),
        ([("ValueError: bad row", 5.0)], [], WORKER.format(1, -15), 0, causes.RANK_ERROR),
        ([(GONE[0], 5.0)], [(GONE[1], 4.0)], "", 0, causes.PEER_GONE),
        ([], [], "", None, None),
    ],
)
def test_which_of_what_a_node_knows_is_the_first(own, others, tail, rank, code):
    events = [error(0, 0, *told) for told in own] + [error(1, 1, *told) for told in others]
    found = first(events, tail=tail)
    assert (found and found.who.rank, found and found.code) == (rank, code)


@pytest.mark.parametrize("message", GONE)
@pytest.mark.parametrize("shift", [-5.0, -1.0, -0.2, 0.0, 0.2, 1.0, 5.0])
@pytest.mark.parametrize("reader", [0, 1, 2])
def test_a_nodes_clock_does_not_change_who_is_named(message, shift, reader):
    # Rank 1's own error at 100.0 by a true clock; the others feel it a little later. One node's clock is off.
    for wrong in (0, 1, 2):
        times = [100.3, 100.0, 100.4]
        times[wrong] += shift
        told = [message, "ZeroDivisionError: division by zero", message]
        found = first([error(node, node, told[node], times[node]) for node in range(3)], node=reader)
        assert found is not None and found.who.rank == 1, (wrong, shift)
        assert found.what == "rank 1 (node 1, gpu1) failed first: ZeroDivisionError: division by zero"


def test_within_a_node_its_clock_decides():
    errors = [error(1, 0, "second", 7.0), error(0, 0, "first", 6.0)]
    found = first(errors, node=3) or pytest.fail()
    assert found.who.rank == 0


CONSEQUENCES = [
    Finding(causes.PEER_GONE, "felt by node 0"),
    Finding(causes.PEER_GONE, "felt by node 2"),
    Finding(causes.STOPPED, "ended by its launcher"),
    Finding(causes.NODE_ERROR, "a launcher that ended without saying why"),
]


@pytest.mark.parametrize("code", [causes.RANK_KILLED, causes.RANK_ERROR, causes.NODE_LOST, causes.RANK_EXIT])
def test_no_order_of_arrival_makes_a_consequence_the_first(code):
    cause = Finding(code, "the culprit")
    for order in permutations([*CONSEQUENCES, cause]):
        assert first_failure(order) is cause
        known = None
        for one in order:  # one by one, as they reach node 0
            if goes_before(one, known):
                known = one
        assert known is cause


def test_of_equals_the_one_that_came_first():
    one, other = Finding(causes.RANK_ERROR, "one"), Finding(causes.RANK_ERROR, "other")
    assert first_failure([one, other]) is one and first_failure([other, one]) is other
    assert first_failure([]) is None


@pytest.mark.parametrize(
    "message",
    [
        "ValueError: bad row",
        "OutOfMemoryError: CUDA out of memory",
        "No space left on device",
        "the loss is not finite",
    ],
)
def test_a_ranks_own_error_is_a_cause(message):
    assert causes.code_of_error(message) == causes.RANK_ERROR


@pytest.mark.parametrize("message", GONE)
def test_a_broken_connection_is_a_consequence(message):
    assert causes.code_of_error(message) == causes.PEER_GONE
    found = first([error(0, 0, message, 1.0)]) or pytest.fail()
    assert "failed first" not in found.what
