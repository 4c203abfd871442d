"""Inputs of recomputed layers on the host: gone from the device until the backward pass, and the same gradients."""

import weakref

import pytest
import torch

from allranks.errors import ConfigError
from allranks.model.build import build_model
from allranks.model.train_model import TrainModel
from tests.tiny_models import config_for, make_batch, one_process, saved_model

WAYS = {
    "kept": {},
    "recomputed": {"gradient_checkpointing": True},
    "offloaded": {"gradient_checkpointing": "offload"},
    "offloaded by its own key": {"gradient_checkpointing": True, "activation_offloading": True},
}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, "lora_dropout": 0.5}


def build(name: str, keys: dict) -> TrainModel:
    return build_model(config_for(saved_model(name), **keys), one_process())


def forward_watching_layer_inputs(model: TrainModel) -> tuple[torch.Tensor, list[weakref.ref]]:
    """The loss, and weak references to the inputs of all layers but the first, whose is the embedding's output."""
    inputs: list[weakref.ref] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, arguments: inputs.append(weakref.ref(arguments[0])))
        for layer in model.hf_model.model.layers
    ]
    torch.manual_seed(3)
    loss = model.forward_loss(make_batch(1))
    for handle in handles:
        handle.remove()
    return loss, inputs


EXPERTS = {**LORA, "lora_dropout": 0.0, "lora_target_parameters": ["mlp.experts.down_proj"]}


@pytest.mark.parametrize(
    ("name", "keys"),
    [*[(name, keys) for name in ("llama", "gemma3", "qwen3-moe") for keys in ({}, LORA)], ("qwen3-moe", EXPERTS)],
)
def test_the_same_gradients(name, keys):
    results = {}
    for way, extra in WAYS.items():
        model = build(name, {**keys, **extra})
        loss, _ = forward_watching_layer_inputs(model)
        loss.backward()
        gradients = {name: p.grad for name, p in model.hf_model.named_parameters() if p.requires_grad}
        results[way] = (loss.detach(), gradients)
    loss, gradients = results["kept"]
    for way in results:
        torch.testing.assert_close(results[way][0], loss, rtol=0, atol=0)
        for name, gradient in gradients.items():
            torch.testing.assert_close(results[way][1][name], gradient, rtol=0, atol=0, msg=f"{way}: {name}")


def test_nothing_of_a_layers_input_is_left_on_the_device():
    alive = {}
    for way, keys in WAYS.items():
        model = build("llama", keys)
        loss, inputs = forward_watching_layer_inputs(model)
        alive[way] = sum(reference() is not None for reference in inputs[1:])
        loss.backward()  # holds the graph until here
    assert alive["recomputed"] == 1, "one of the two layers has an input that is not the embedding's output"
    assert alive["offloaded"] == alive["offloaded by its own key"] == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"activation_offloading": True}, "needs `gradient_checkpointing: true`"),
        ({"gradient_checkpointing": "offload", "torch_compile": True}, "does not work with torch_compile"),
        ({"gradient_checkpointing": "offload_disk"}, "only host memory"),
    ],
)
def test_what_it_does_not_go_with_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        config_for(saved_model("llama"), **keys)
