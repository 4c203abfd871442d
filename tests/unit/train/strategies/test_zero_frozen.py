"""`unfrozen_parameters` under ZeRO: what one process trains is trained, and a checkpoint holds the whole model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from allranks.checkpoint.dcp.reader import reader
from allranks.config.load import resolve_mapping
from allranks.model.build import build_model
from allranks.model.placement import place
from allranks.train.strategies import Strategy, make_strategy
from allranks.train.strategies.flat import LoadPlanner, SavePlanner
from tests.ranks import run_ranks
from tests.tiny_models import flat_for, make_batch, saved_model

KEYS: dict[str, Any] = {
    "unfrozen_parameters": ["model.layers.1.mlp", "^model.norm.weight$"],
    "sample_packing": False,
    "attn_implementation": "eager",
}
STAGES = (1, 2, 3)
BATCH = make_batch(3, (11,))


def trained(flat: dict[str, Any], rank: int, world_size: int, num_steps: int) -> Strategy:
    """Each rank sees the same tokens, so that all together train what one process trains."""
    cfg = resolve_mapping(flat)
    model = build_model(cfg, place(cfg, torch.device("cpu"), rank, world_size))
    strategy = make_strategy(cfg, model)
    for _ in range(num_steps):
        with strategy.micro_batch(last=True):
            strategy.backward(model.forward_losses(BATCH).cross_entropy / len(BATCH.labels))
        strategy.step()
    return strategy


def _rank(rank: int, folder: Path, base: Path) -> None:
    for stage in STAGES:
        flat = flat_for(base, **KEYS, deepspeed={"zero_optimization": {"stage": stage}})
        before = trained(flat, rank, 2, 2)
        dcp.save(before.state.contents(only_model=False), checkpoint_id=folder / str(stage), planner=SavePlanner())
        after = trained(flat, rank, 2, 0)
        contents = after.state.contents(only_model=False)
        dcp.load(contents, storage_reader=reader(folder / str(stage)), planner=LoadPlanner())
        after.state.restore(contents)
        dcp.save(after.state.contents(only_model=True), checkpoint_id=folder / f"{stage} again", planner=SavePlanner())
    dist.barrier()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of two ranks, by stage; "again": of a run that has loaded one."""
    folder = tmp_path_factory.mktemp("zero")
    run_ranks(_rank, folder, saved_model("llama-tied"))
    return folder


def read(folder: Path, names: Any) -> dict[str, torch.Tensor]:
    model = {name: torch.full_like(value, float("nan")) for name, value in names.items()}
    dcp.load({"model": model}, storage_reader=reader(folder), planner=LoadPlanner(), no_dist=True)
    return model


@pytest.mark.parametrize("again", ["", " again"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_is_that_of_one_process(saved, stage, again):
    folder = saved / f"{stage}{again}"
    flat = flat_for(saved_model("llama-tied"), **KEYS)
    wanted = trained(flat, 0, 1, 2).state.contents(only_model=True)["model"]
    start = trained(flat, 0, 1, 0).state.contents(only_model=True)["model"]
    stored = {name.removeprefix("model.") for name in reader(folder).read_metadata().state_dict_metadata}
    assert {name for name in stored if name in wanted} == wanted.keys()
    moved = 0
    for name, value in read(folder, wanted).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
        moved += not torch.equal(value, start[name])
    assert moved == 4  # the three of the MLP, and the norm
