"""Flat ranges of tensors in checkpoints: written by so many holders, read by so many others, whole or in pieces."""

import itertools
import math

import pytest
import torch
import torch.distributed.checkpoint as dcp

from allranks.checkpoint.dcp.reader import reader
from allranks.train.strategies.flat import FlatRange, LoadPlanner, SavePlanner, boxes


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (4, 1, 3), (1, 1)])
def test_boxes_are_exactly_the_range_in_order(shape):
    size = math.prod(shape)
    whole = torch.arange(size).view(shape)
    for start, stop in itertools.combinations_with_replacement(range(size + 1), 2):
        found = []
        for offsets, sizes in boxes(shape, start, stop):
            box = whole
            for dim, (offset, length) in enumerate(zip(offsets, sizes, strict=True)):
                box = box.narrow(dim, offset, length)
            found += box.flatten().tolist()
        assert found == list(range(start, stop)), (start, stop)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_saved_in_one_way_is_loaded_in_every_other(tmp_path, asynchronous):
    whole = torch.randn(5, 7)
    saved = {"model": {"weight": FlatRange((5, 7), 0, whole.flatten().clone())}}
    how = {"checkpoint_id": tmp_path, "planner": SavePlanner()}
    if asynchronous:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            future = dcp.async_save(saved, **how)
            saved["model"]["weight"].values.fill_(float("nan"))  # training goes on
            future.result()
        finally:
            torch.distributed.destroy_process_group()
    else:
        dcp.save(saved, **how)
    as_tensor = torch.zeros(5, 7)
    as_range = FlatRange((5, 7), 9, torch.zeros(20))
    for target in (as_tensor, as_range):
        dcp.load({"model": {"weight": target}}, storage_reader=reader(tmp_path), planner=LoadPlanner(), no_dist=True)
    assert torch.equal(as_tensor, whole)
    assert torch.equal(as_range.values, whole.flatten()[9:29])
