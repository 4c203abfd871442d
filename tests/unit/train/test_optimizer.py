import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from allranks.checkpoint.state import RunState
from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError
from allranks.model.build import build_model
from allranks.train.assemble import saves_behind
from allranks.train.checkpoint import Checkpointer
from allranks.train.optimizer import make_optimizer
from allranks.train.storage import ALONE
from allranks.train.strategies.eight_bits import is_packed, narrow, widened
from allranks.train.strategies.native import NativeState
from tests.tiny_models import config_for, make_model, one_process, saved_model


def config(**keys):
    return resolve_mapping(
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


# Optimizer -> the package that brings it.
TORCHS = dict.fromkeys(["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop", "muon"], "torch")
BNBS = dict.fromkeys(["adamw_8bit", "lion_8bit", "lion_32bit", "rmsprop_bnb", "rmsprop_bnb_8bit"], "bitsandbytes")
OTHERS = {"lion_pytorch": "lion-pytorch", "came_pytorch": "came-pytorch", "ao_adamw_8bit": "torchao"}


@pytest.mark.parametrize(("name", "package"), [*TORCHS.items(), *BNBS.items(), *OTHERS.items()])
def test_every_optimizer_goes_on_after_a_resume_as_without(tmp_path, name, package):
    pytest.importorskip(package.replace("-", "_"), reason=f"needs {package}: pip install {package}")

    def make():
        model = Model()
        optimizer = make_optimizer(config(optimizer=name), model)
        trained = NativeState(model, optimizer)
        return Checkpointer(tmp_path, trained, group=None, storage=ALONE, asynchronous=False, keep=None)

    first, second = make(), make()
    for _ in range(3):
        train_step(first.trained.model, first.trained.optimizer)
    path = first.save(3, RunState(3, {}))
    second.load(path)
    train_step(first.trained.model, first.trained.optimizer)
    train_step(second.trained.model, second.trained.optimizer)
    for one, other in zip(first.trained.model.parameters(), second.trained.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_library_that_is_missing_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "came_pytorch", None)
    with pytest.raises(ConfigError, match="pip install came-pytorch"):
        make_optimizer(config(optimizer="came_pytorch"), Model())


def test_muon_steps_hidden_matrices_and_adamw_the_rest():
    """Against torch's own two, each over its share of a real model."""
    ours, theirs = make_model("llama"), make_model("llama")
    optimizer = make_optimizer(config(optimizer="muon", weight_decay=0.1, adam_beta2=0.95), ours)
    ends = ("embed_tokens", "lm_head")
    hidden = [p for name, p in theirs.named_parameters() if p.ndim == 2 and not any(end in name for end in ends)]
    others = [p for name, p in theirs.named_parameters() if p.ndim == 2 and any(end in name for end in ends)]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    reference = [
        torch.optim.Muon(hidden, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95)),
        torch.optim.AdamW(vectors, lr=1e-2, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    for model, steppers in ((ours, [optimizer]), (theirs, reference)):
        for step in range(2):
            ids = torch.arange(12)[None] + step
            model(input_ids=ids, labels=ids).loss.backward()
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other), name


LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8}


def rates(model, **keys):
    """Learning rate by parameter name."""
    optimizer = make_optimizer(config(**keys), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_rates_of_chosen_parameters():
    groups = [{"name": "o", "modules": ["o_proj"], "lr": 3e-4}, {"name": "l1", "modules": ["layers.1."], "lr": 1e-5}]
    found = rates(make_model("llama"), lr_groups=groups, embedding_lr=2e-5)
    assert len(found) == len(list(make_model("llama").parameters()))
    for name, rate in found.items():
        wanted = 3e-4 if "o_proj" in name else 1e-5 if "layers.1." in name else 1e-2
        assert rate == (2e-5 if name in ("model.embed_tokens.weight", "lm_head.weight") else wanted), name
    found = rates(make_model("llama-tied"), embedding_lr_scale=0.1)
    assert found["model.embed_tokens.weight"] == pytest.approx(1e-3) and found["model.norm.weight"] == 1e-2


def test_the_first_group_is_that_of_the_learning_rate():
    """The rate that is reported is its."""
    optimizer = make_optimizer(config(embedding_lr=2e-5), make_model("llama"))
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_lora_plus():
    targets = {"lora_target_modules": ["embed_tokens", "q_proj"]}
    model = build_model(config_for(saved_model("llama"), **LORA, **targets), one_process()).hf_model
    for name, rate in rates(model, **LORA, **targets, loraplus_lr_ratio=16.0, loraplus_lr_embedding=5e-6).items():
        assert rate == (5e-6 if "lora_embedding_" in name else 0.16 if "lora_B" in name else 1e-2), name


def test_rates_that_no_parameter_has_are_refused():
    with pytest.raises(ConfigError, match="lr_groups: wrong: no trained parameter"):
        rates(make_model("llama"), lr_groups=[{"name": "wrong", "modules": ["c_attn"], "lr": 1e-3}])
    model = build_model(config_for(saved_model("llama"), **LORA, lora_target_modules=["q_proj"]), one_process())
    with pytest.raises(ConfigError, match="embedding_lr: no trained parameter"):
        rates(model.hf_model, embedding_lr=1e-3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimizer": "galore_adamw"}, "low rank"),
        ({"optimizer": "schedule_free_adamw"}, "swapped for evaluations"),
        ({"optimizer": "adamw_torch", "adam_beta3": 0.99}, "it is for came and ademamix"),
        ({"embedding_lr": 1e-4, "embedding_lr_scale": 0.1}, "excludes embedding_lr"),
    ],
)
def test_what_an_optimizer_cannot_use_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        config(**keys)


@pytest.fixture
def sharded():
    """A model whose parameters are DTensors, as FSDP makes them."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield fully_shard(make_model("llama"), mesh=init_device_mesh("cpu", (1,)))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["adafactor", "came_pytorch", "ademamix"])
def test_what_cannot_work_on_parts_of_parameters_is_refused_and_not_at_the_first_step(name):
    with pytest.raises(ConfigError, match="does not work with FSDP"):
        config(optimizer=name, fsdp_version=2)
    with pytest.raises(ConfigError, match="does not work on the flat pieces that ZeRO makes"):
        config(optimizer=name, deepspeed={"zero_optimization": {"stage": 2}})


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("adamw_8bit", "adamw_torch_8bit"),
        ("paged_adamw_8bit", "adamw_torch_8bit"),
        ("paged_adamw_32bit", "adamw_torch_fused"),
    ],
)
def test_what_takes_no_shards_is_replaced_by_what_keeps_its_state_as_small(name, instead):
    found = config(optimizer=name, fsdp_version=2)
    assert found.optimizer.optimizer == instead and instead in found.warnings[0]
    assert saves_behind(found) is (instead == "adamw_torch_fused"), "torchao's state cannot be copied aside"
    alone = config(optimizer=name)
    assert alone.optimizer.optimizer != instead and not alone.warnings


def test_saving_behind_the_training_is_refused_where_it_would_fail_at_the_first_save():
    with pytest.raises(ConfigError, match="save_async: the state of adamw_torch_8bit cannot be written behind"):
        config(optimizer="adamw_torch_8bit", save_async=True)


@pytest.mark.parametrize("name", ["adamw_8bit", "lion_8bit", "rmsprop_bnb_8bit", "lion_32bit"])
def test_state_in_8_bits_goes_through_float32_and_back_without_a_change(name):
    """As a checkpoint of ZeRO's pieces takes it, in the middle of a run."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    start, gradients = torch.randn(5000), torch.randn(8, 5000)

    def made(values):
        layer = torch.nn.Module()
        layer.weight = torch.nn.Parameter(values.clone())
        return layer.weight, make_optimizer(config(optimizer=name), layer)

    def steps(weight, optimizer, some):
        for gradient in some:
            weight.grad = gradient.clone()
            optimizer.step()

    whole, optimizer = made(start)
    steps(whole, optimizer, gradients[:4])
    state = optimizer.state[whole]
    wide = widened(state)
    assert all(value.dtype == torch.float32 for value in wide.values() if isinstance(value, torch.Tensor))
    assert wide["state1"].shape == whole.shape and wide["step"] == state["step"]
    other, resumed = made(whole.detach())
    steps(other, resumed, gradients[7:])  # it has a state, and another one
    other.data.copy_(whole.data)
    there = resumed.state[other]
    there["step"] = wide["step"]
    if any(is_packed(there, key) for key in there):
        narrow(there, wide)
    else:
        for key in ("state1", "state2"):
            if key in there:
                there[key].copy_(wide[key])
    for key in (key for key, value in state.items() if isinstance(value, torch.Tensor)):
        # A scale may differ in its last bit.
        torch.testing.assert_close(there[key], state[key], rtol=1e-6, atol=0)
    steps(whole, optimizer, gradients[4:])
    steps(other, resumed, gradients[4:])
    torch.testing.assert_close(whole, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw_torch", "sgd", "adagrad", "rmsprop", "muon"])
def test_what_works_on_shards_does_what_it_does_on_whole_tensors(sharded, name):
    whole = make_model("llama")
    for model in (sharded, whole):
        optimizer = make_optimizer(config(optimizer=name), model)
        ids = torch.arange(12)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for one, other in zip(sharded.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.full_tensor(), other)
