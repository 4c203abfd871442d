import pytest
import torch
from torch import nn

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.train.checkpoint import Checkpointer
from allranks.train.optimizer import make_optimizer
from allranks.train.storage import ALONE
from allranks.train.strategies.native import NativeState


def config(**keys):
    return RunConfig.from_flat(
        {"base_model": "m", "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "learning_rate": 1e-2, **keys}
    )


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(128, 64)
        self.norm = nn.LayerNorm(64)


def train_step(model, optimizer):
    model.norm(model.linear(torch.ones(2, 128))).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_decay_and_vectors_do_not():
    model = Model()
    optimizer = make_optimizer(config(weight_decay=0.1), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model.linear.weight)] == 0.1
    assert decay[id(model.linear.bias)] == decay[id(model.norm.weight)] == 0.0


def test_betas_epsilon_and_optim_args_reach_the_optimizer():
    optimizer = make_optimizer(config(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6), Model())
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.95), 1e-6)
    optimizer = make_optimizer(config(optim_args="eps=1.0e-5, amsgrad=true"), Model())
    assert (optimizer.defaults["eps"], optimizer.defaults["amsgrad"]) == (1e-5, True)
    optimizer = make_optimizer(config(optimizer="sgd", optim_args={"momentum": 0.9}), Model())
    assert optimizer.defaults["momentum"] == 0.9


def test_arguments_that_the_optimizer_does_not_take_are_named():
    with pytest.raises(ConfigError, match=r"optim_args: optimizer adamw_torch_fused .*momentum"):
        make_optimizer(config(optim_args="momentum=0.9"), Model())


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(config(), Model().requires_grad_(False))


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adamw_8bit", "lion_8bit"])
def test_every_optimizer_goes_on_after_a_resume_as_without(tmp_path, name):
    if name.endswith("8bit"):
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -e .[bitsandbytes]")

    def make():
        model = Model()
        optimizer = make_optimizer(config(optimizer=name), model)
        trained = NativeState(model, optimizer)
        return Checkpointer(tmp_path, trained, group=None, storage=ALONE, asynchronous=False, keep=None)

    first, second = make(), make()
    for _ in range(3):
        train_step(first.trained.model, first.trained.optimizer)
    path = first.save(3, {})
    second.load(path)
    train_step(first.trained.model, first.trained.optimizer)
    train_step(second.trained.model, second.trained.optimizer)
    for one, other in zip(first.trained.model.parameters(), second.trained.model.parameters(), strict=True):
        assert torch.equal(one, other)
