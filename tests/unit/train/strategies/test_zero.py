"""Two ranks under ZeRO train what one process trains, and their checkpoints are its checkpoints."""

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

_FROZEN = {"unfrozen_parameters": ["model.layers.1.mlp", "^model.norm.weight$"]}
_EXPERTS = {"adapter": "qlora", "lora_r": 3, "lora_alpha": 6, "lora_target_modules": ["q_proj"]}
# Architecture, keys, stage, and how many of the tensors that a checkpoint holds two steps move.
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    **{f"partly frozen, stage {stage}": ("llama-tied", _FROZEN, stage, 4) for stage in (1, 2, 3)},
    "packed experts, stage 2": ("qwen3-moe", {**_EXPERTS, "quantize_moe_experts": True}, 2, 4),
    "packed experts, stage 3": ("qwen3-moe", {**_EXPERTS, "quantize_moe_experts": True}, 3, 4),
}
BATCH = make_batch(3, (11,))


def flat_of(case: str, base: Path, *, zero: bool) -> dict[str, Any]:
    _, keys, stage, _ = CASES[case]
    plain = {"sample_packing": False, "attn_implementation": "eager"}
    return flat_for(base, **keys, **plain, **({"deepspeed": {"zero_optimization": {"stage": stage}}} if zero else {}))


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


def _rank(rank: int, folder: Path, bases: dict[str, Path]) -> None:
    for case in CASES:
        flat = flat_of(case, bases[case], zero=True)
        before = trained(flat, rank, 2, 2)
        dcp.save(before.state.contents(only_model=False), checkpoint_id=folder / case, planner=SavePlanner())
        after = trained(flat, rank, 2, 0)
        contents = after.state.contents(only_model=False)
        dcp.load(contents, storage_reader=reader(folder / case), planner=LoadPlanner())
        after.state.restore(contents)
        dcp.save(after.state.contents(only_model=True), checkpoint_id=folder / f"{case} again", planner=SavePlanner())
    dist.barrier()


@pytest.fixture(scope="module")
def bases() -> dict[str, Path]:
    return {case: saved_model(architecture) for case, (architecture, *_) in CASES.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, bases):
    """Checkpoints of two ranks, by case; "again": of a run that has loaded one."""
    folder = tmp_path_factory.mktemp("zero")
    run_ranks(_rank, folder, bases)
    return folder


def read(folder: Path, names: Any) -> dict[str, torch.Tensor]:
    model = {name: torch.full_like(value, float("nan")) for name, value in names.items()}
    dcp.load({"model": model}, storage_reader=reader(folder), planner=LoadPlanner(), no_dist=True)
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_that_of_one_process(saved, bases, case):
    flat = flat_of(case, bases[case], zero=False)
    wanted = trained(flat, 0, 1, 2).state.contents(only_model=True)["model"]
    start = trained(flat, 0, 1, 0).state.contents(only_model=True)["model"]
    for folder in (saved / case, saved / f"{case} again"):
        stored = {name for name in reader(folder).read_metadata().state_dict_metadata if name.startswith("model.")}
        assert stored == {f"model.{name}" for name in wanted}
        values = read(folder, wanted)
        for name, value in values.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
        assert sum(not torch.equal(value, start[name]) for name, value in values.items()) == CASES[case][3]
