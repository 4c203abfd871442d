"""The actor between driver and workers, without Ray: its methods are plain ones."""

import pytest

from allranks.launch.ray_train.board import Board, End, Orders, Seat, Word
from allranks.launch.ray_train.watch import failed


@pytest.fixture
def board():
    return Board(
        Orders(
            run_id="r",
            world_size=2,
            config="",
            output_dir="out",
            directory="/work",
            environment={"HF_TOKEN": "hf_secret"},
            ray_directory="/data/out/ray",
            version="1",
        )
    )


SEAT = Seat("node0", 0, 0)


def test_each_attempt_has_its_own_rendezvous_point_and_its_own_ranks(board):
    board.begin("10.0.0.1", 1111)
    assert board.enlist(0, SEAT).attempt == 1
    board.announce(3, closed=True, committed=6)
    assert board.fail({1: "ActorDiedError: gone"}), "Ray may try again"
    assert board.news().seats == {}
    board.begin("10.0.0.2", 2222)
    orders = board.enlist(0, SEAT)
    assert (orders.attempt, orders.master_addr, orders.master_port) == (2, "10.0.0.2", 2222)
    assert board.beat(0, []) == Word(stop=False, num_reports=0, closed=False)
    assert board.news().committed == 6, "what is saved is the run's"


def test_a_stop_reaches_every_rank_also_after_a_restart(board):
    board.begin("10.0.0.1", 1)
    board.stop()
    assert board.beat(1, []).stop
    board.begin("10.0.0.1", 2)
    assert board.beat(0, []).stop


def test_lines_are_fetched_once_and_in_order(board):
    board.beat(0, ["a", "b"])
    board.beat(0, ["c"])
    assert board.news().lines == ["a", "b", "c"]
    assert board.news().lines == []


def test_the_first_cause_of_a_failure_is_told_first(board):
    board.begin("10.0.0.1", 1)
    board.enlist(1, Seat("node1", 1, 0))
    board.end(End(1, 0, "node0", 1, "RuntimeError: connection reset", "/run/rank-00000.log"))
    board.end(End(1, 2, "node1", -9, "killed by SIGKILL"))
    board.end(End(1, 3, "node1", 0))
    board.fail({0: "RuntimeError: rank 0 …", 2: "RuntimeError: rank 2 …", 1: "\nThe actor died.\n more"})
    assert failed(board.news(), 1) == [
        "rank 2 on node1 failed: killed by SIGKILL",
        "the worker of rank 1 on node1 was lost: The actor died.",
        "rank 0 on node0 failed: RuntimeError: connection reset; its log: /run/rank-00000.log",
    ]
    assert failed(board.news(), 2) == []


@pytest.mark.parametrize("code", [2, 3])
def test_what_the_next_attempt_would_meet_again_is_not_tried_again(board, code):
    board.begin("10.0.0.1", 1)
    board.end(End(1, 1, "node1", code, "ConfigError: …"))
    assert not board.fail({1: "RuntimeError"})


def test_what_rank_0_has_printed_is_not_told_twice(board):
    board.begin("10.0.0.1", 1)
    board.end(End(1, 0, "node0", 1, "no such model", is_shown=True))
    assert failed(board.news(), 1) == ["rank 0 on node0 failed: its message is above"]


def test_secrets_do_not_show_in_a_repr(board):
    assert "hf_secret" not in repr(board.orders_of_run)
