import math

import torch

from allranks.train.stats import StatsReader
from tests.ranks import run_ranks


def push(reader, step, loss_sum, *, router=0.0, norm=1.0, targets=4, stop=False):
    sums = torch.tensor([loss_sum, router])
    return reader.push(step, sums, torch.tensor(norm), num_target_tokens=targets, num_blocks=2, stop=stop)


def test_the_loss_is_the_mean_over_targets():
    [stats] = push(StatsReader(rank=0, world_size=1, device=torch.device("cpu")), 3, 10.0, norm=2.5)
    assert (stats.step, stats.loss, stats.grad_norm, stats.bad_ranks, stats.stop_ranks) == (3, 2.5, 2.5, (), ())


def test_the_loss_is_what_was_minimised_and_the_router_loss_is_the_mean_over_blocks():
    reader = StatsReader(rank=0, world_size=1, device=torch.device("cpu"), router_coefficient=0.5)
    [stats] = push(reader, 1, 10.0, router=6.0)
    assert (stats.loss, stats.router_loss) == (4.0, 3.0)
    [stats] = push(reader, 2, 10.0, router=math.nan)
    assert stats.bad_ranks == (0,)


def test_a_loss_that_is_not_finite_names_its_rank():
    reader = StatsReader(rank=0, world_size=1, device=torch.device("cpu"))
    for bad in (math.nan, math.inf):
        [stats] = push(reader, 1, bad)
        assert stats.bad_ranks == (0,)


def test_a_stop_is_seen():
    [stats] = push(StatsReader(rank=0, world_size=1, device=torch.device("cpu")), 1, 1.0, stop=True)
    assert stats.stop_ranks == (0,)


def test_with_a_lag_numbers_come_one_step_later_and_flush_brings_the_rest():
    reader = StatsReader(rank=0, world_size=1, device=torch.device("cpu"))
    reader.lag = 1  # as on a GPU
    assert push(reader, 1, 4.0) == []
    assert [stats.step for stats in push(reader, 2, 8.0)] == [1]
    assert [stats.loss for stats in reader.flush()] == [2.0]
    assert reader.flush() == []


def test_each_ranks_waits_are_known_to_all():
    run_ranks(_rank_that_waits)


def _rank_that_waits(rank):
    reader = StatsReader(rank=rank, world_size=2, device=torch.device("cpu"))
    sums = torch.tensor([math.nan if rank == 1 else 1.0, 0.0])
    waited = {0: 0.25, 1: 2.0}[rank]
    [stats] = reader.push(
        1, sums, torch.tensor(1.0), num_target_tokens=4, num_blocks=2, stop=rank == 0, data_seconds=waited
    )
    assert stats.data_seconds == (0.25, 2.0)
    assert len(stats.cpu_seconds) == 2 and min(stats.cpu_seconds) >= 0
    assert (stats.bad_ranks, stats.stop_ranks) == ((1,), (0,))


def test_all_ranks_hear_in_the_same_step_that_a_save_is_over_or_failed_on_one():
    run_ranks(_rank_that_saves)


def _rank_that_saves(rank):
    reader = StatsReader(rank=rank, world_size=2, device=torch.device("cpu"))
    of_both = {"begun": (0, 0), "one is done": (0, 1), "both are done": (1, 1), "one failed": (0, 2)}
    heard = []
    for states in of_both.values():
        [stats] = reader.push(
            1,
            torch.tensor([1.0, 0.0]),
            torch.tensor(1.0),
            num_target_tokens=4,
            num_blocks=2,
            stop=False,
            saved=states[rank] > 0,
            save_failed=states[rank] > 1,
        )
        heard.append(stats.saved)
    assert heard == [False, False, True, True]


def test_the_wait_for_a_cpu_is_of_one_step(monkeypatch, tmp_path):
    """The kernel counts it from the start of the process, in nanoseconds, as the second of three numbers."""
    schedstat = tmp_path / "schedstat"
    monkeypatch.setattr("allranks.train.stats._SCHEDSTAT", schedstat)
    schedstat.write_text("9000000000 1500000000 77\n")
    reader = StatsReader(rank=0, world_size=1, device=torch.device("cpu"))
    waits = []
    for text in ("9100000000 1500000000 78\n", "9200000000 4000000000 79\n", "9200000000 4000000000 79\n"):
        schedstat.write_text(text)
        waits += push(reader, 1, 1.0)[0].cpu_seconds
    assert waits == [0.0, 2.5, 0.0]
    schedstat.unlink()
    assert push(StatsReader(rank=0, world_size=1, device=torch.device("cpu")), 1, 1.0)[0].cpu_seconds == (0.0,)
