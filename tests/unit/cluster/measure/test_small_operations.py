"""The small operations of a layer, by which a CPU's memory is measured: as many bytes as a plan counts of them."""

import torch

from allranks.cluster.measure.layer import SMALL_BYTES, small_operations
from allranks.plan import moved


def test_they_are_counted_as_a_plan_counts_them() -> None:
    two_of_hidden = [sum(table[4]) for table in (moved._NORM, moved._RESIDUAL)]
    assert 2 * sum(two_of_hidden) + 2 * sum(moved._ROTARY[4]) + 3 * sum(moved._GATE[4]) == SMALL_BYTES


def test_they_go_forward_and_back_again_and_again() -> None:
    ahead, back = small_operations(4 * 256, 2, torch.device("cpu"))
    for _ in range(2):
        ahead()
        back()
