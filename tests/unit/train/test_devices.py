"""One GPU a rank: chosen from what the process sees, compared between all of them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch.distributed as dist

from allranks.cluster.identity import Identity
from allranks.errors import AllranksError
from allranks.train.devices import Claim, choose_gpu, conflict, refuse_conflicts

THIRD = Identity(6, 8, 2, 4, 1, "a", 1, "test")


@pytest.mark.parametrize(
    ("local_rank", "num_visible", "env", "expected"),
    [
        (2, 4, {}, 2),
        (0, 1, {}, 0),
        (2, 1, {"SLURM_STEP_ID": "0"}, 0),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "2"}, 0),
        (2, 4, {"SLURM_STEP_ID": "0", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 2),
    ],
)
def test_the_gpu_of_a_rank(local_rank, num_visible, env, expected):
    assert choose_gpu(replace(THIRD, local_rank=local_rank), num_visible, env) == expected


@pytest.mark.parametrize(("num_visible", "env"), [(1, {}), (2, {}), (2, {"CUDA_VISIBLE_DEVICES": "0,1"})])
def test_fewer_gpus_than_processes_are_refused(num_visible, env):
    with pytest.raises(AllranksError, match=rf"rank 6 has local rank 2, but .* shows {num_visible} GPU\(s\)"):
        choose_gpu(THIRD, num_visible, env)


def test_two_ranks_on_one_gpu_are_named():
    claims = [Claim("n0", "GPU-a"), Claim("n0", "GPU-b"), Claim("n1", "GPU-c"), Claim("n1", "GPU-c")]
    assert "ranks 2 and 3 on n1 would share GPU-c" in conflict(claims)
    assert conflict(claims[:3]) == ""
    assert conflict([Claim("n0", None), Claim("n0", None)]) == ""


def test_a_rank_without_a_gpu_among_ranks_with_one_is_named():
    assert "1 of 2 ranks see no GPU, the first of them rank 1 on n1" in conflict(
        [Claim("n0", "GPU-a"), Claim("n1", None)]
    )


@pytest.mark.parametrize("gpus", ["abc", "aba"])
def test_all_ranks_hear_of_a_conflict(gpus):
    def compare(rank):
        refuse_conflicts(Claim("n0", f"GPU-{gpus[rank]}"), store, rank, 3)

    store = dist.HashStore()
    with ThreadPoolExecutor(3) as pool:
        ranks = [pool.submit(compare, rank) for rank in range(3)]
        errors = [rank.exception(timeout=30) for rank in ranks]
    if gpus == "abc":
        assert errors == [None, None, None]
    else:
        assert {str(error).partition(":")[0] for error in errors} == {"ranks 0 and 2 on n0 would share GPU-a"}
