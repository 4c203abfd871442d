"""Forward passes without a backward pass must not leave FSDP's root gathered: who asks next gets plain tensors."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from allranks.model.build import build_model
from allranks.model.placement import Placement
from allranks.model.train_model import TrainModel
from tests.tiny_models import config_for, make_batch, saved_model


@pytest.fixture
def placement():
    """A mesh of one rank: FSDP runs as it does on many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Placement("fsdp", torch.device("cpu"), init_device_mesh("cpu", (1,), mesh_dim_names=("shard",)))
    dist.destroy_process_group()


def built(placement: Placement, name: str, **keys: Any) -> TrainModel:
    # sdpa is not our function, so documents' isolation is tried on the model.
    return build_model(config_for(saved_model(name), fsdp_version=2, attn_implementation="sdpa", **keys), placement)


def plain_parameters(model: TrainModel) -> list[str]:
    return [name for name, parameter in model.module.named_parameters() if not isinstance(parameter, DTensor)]


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_everything_trains_after_the_probe(placement, name):
    model = built(placement, name)
    assert plain_parameters(model) == []
    before = {name: parameter.full_tensor().clone() for name, parameter in model.module.named_parameters()}
    optimizer = torch.optim.SGD(list(model.module.parameters()), lr=1.0)
    model.forward_loss(make_batch(1)).backward()
    optimizer.step()
    after = dict(model.module.named_parameters())
    assert [name for name in before if torch.equal(before[name], after[name].full_tensor())] == []


def test_logits_and_evaluation_before_training(placement):
    model = built(placement, "llama-tied")
    model.logits(make_batch(1))
    assert plain_parameters(model) == []
    with torch.no_grad():
        model.forward_loss(make_batch(1))
    assert plain_parameters(model) != [], "FSDP reshards by itself by now: reshard() is not needed any more"
    model.reshard()
    assert plain_parameters(model) == []
