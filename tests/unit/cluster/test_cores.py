"""The threads and cores of a rank that computes on CPUs."""

import pytest

from allranks.cluster import cores
from allranks.cluster.cores import cores_of_rank, threads_of_rank


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)


@pytest.mark.parametrize(
    ("env", "num_ranks", "threads"),
    [
        ({}, 1, 8),
        ({}, 3, 2),
        ({}, 16, 1),
        ({"OMP_NUM_THREADS": "3"}, 4, 3),
        ({"OMP_NUM_THREADS": " 4,2"}, 1, 4),
        ({"OMP_NUM_THREADS": "many"}, 2, 8),
        ({"OMP_NUM_THREADS": "0"}, 2, 8),
        ({"OMP_NUM_THREADS": ""}, 2, 8),
    ],
)
def test_threads_are_what_openmp_takes(env: dict[str, str], num_ranks: int, threads: int) -> None:
    assert threads_of_rank(num_ranks, env) == threads


def test_ranks_of_more_threads_than_there_are_cores_share_them() -> None:
    assert cores_of_rank(2, 3) == 3
    assert cores_of_rank(4, 8) == 2
    assert cores_of_rank(16, 1) == 0.5
