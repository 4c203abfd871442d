"""Ranks that share a tensor must have loaded the same one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from allranks.cluster.identity import Identity
from allranks.errors import RefusedError
from allranks.train.replicas import check_replicas, checksums, different
from tests.ranks import run_ranks

RANKS = 4


def _model(*, buffer: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))
    model.register_buffer("frequencies", torch.tensor([buffer]))
    return model


def _rank(rank: int, folder: Path) -> None:
    me = Identity(rank, RANKS, rank, None, None, "127.0.0.1", 0, "test")
    said = {}

    def check(name: str, model: nn.Module) -> None:
        try:
            check_replicas(model, me)
        except RefusedError as error:
            said[name] = str(error)

    check("equal", _model())
    # A sum over ranks of another buffer, and of one weight in one place.
    check("buffer", _model(buffer=1.0 if rank != 2 else 1.0000001))
    model = _model()
    if rank == 3:
        model[1].weight.data[5, 7] += 1e-6
    check("weight", model)

    def sharded(mesh) -> nn.Module:
        model = _model()
        fully_shard(model, mesh=mesh)
        return model

    pairs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    check("hsdp", sharded(pairs))
    model = sharded(pairs)
    if rank == 3:
        model[0].weight.detach().to_local().add_(1)
    check("hsdp, one replica's shard", model)
    check("fsdp", sharded(init_device_mesh("cpu", (RANKS,))))
    dist.barrier()
    torch.save(said, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("replicas")
    run_ranks(_rank, folder, num_ranks=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_equal_models_pass_under_every_way_to_spread_them(said):
    assert all(not {"equal", "hsdp", "fsdp"} & set(of_rank) for of_rank in said)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("buffer", "frequencies is one on ranks 0, 1, 3 and another on rank 2"),
        ("weight", "1.weight is one on ranks 0, 1, 2 and another on rank 3"),
        ("hsdp, one replica's shard", "0.weight is one on rank 1 and another on rank 3"),
    ],
)
def test_what_differs_is_named_on_all_ranks(said, name, told):
    assert all(told in of_rank[name] for of_rank in said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_a_checksum_sees_every_bit(dtype):
    module = nn.Module()
    module.register_buffer("x", torch.arange(12).to(dtype).reshape(3, 4).t())
    before = checksums(module)
    module.x[2, 1] += 1
    assert checksums(module) != before


def test_tensors_that_only_one_rank_holds_are_not_compared():
    assert different([{"w@0,4": 1}, {"w@4,4": 2}]) == []
