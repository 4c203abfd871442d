"""What a rank says that it holds is what it holds; an allocation that really fails is told with it."""

import pytest
import torch

from allranks.cluster.identity import identify
from allranks.config.load import resolve_mapping
from allranks.model.build import build_model
from allranks.train.memory import held_later, held_now, out_of_memory
from allranks.train.strategies import make_strategy
from tests.tiny_models import flat_for, make_batch, one_process, saved_model
from tests.tiny_runs import LORA


@pytest.mark.parametrize("keys", [{}, LORA, {"optimizer": "sgd"}, {"optimizer": "muon"}], ids=str)
def test_what_is_held_before_and_after_each_part_of_a_step(keys):
    cfg = resolve_mapping({**flat_for(saved_model("llama")), "learning_rate": 1e-3, **keys})
    model = build_model(cfg, one_process())
    strategy = make_strategy(cfg, model)
    parameters = sum(one.numel() * one.element_size() for one in model.hf_model.parameters())
    trained = sum(one.numel() * one.element_size() for one in model.hf_model.parameters() if one.requires_grad)
    foretold = held_later(cfg, model, on_gpu=False)
    assert (foretold.parameters, foretold.gradients) == (parameters, trained)

    assert held_now(model, strategy, on_gpu=False) == held_now(model, None, on_gpu=False)
    strategy.backward(model.forward_loss(make_batch(1)))
    held = held_now(model, strategy, on_gpu=False)
    assert (held.parameters, held.gradients, held.optimizer) == (parameters, trained, 0)
    strategy.step()
    held = held_now(model, strategy, on_gpu=False)
    assert held.gradients == 0 and held.optimizer == pytest.approx(foretold.optimizer, rel=0.02)
    assert held_now(model, strategy, on_gpu=True).total == 0 and held_now(None, None, on_gpu=False).total == 0


def test_a_real_allocation_that_fails():
    cfg = resolve_mapping({**flat_for(saved_model("llama")), "learning_rate": 1e-3})
    model = build_model(cfg, one_process())
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55, dtype=torch.uint8)
    told = out_of_memory(error.value, cfg, identify({}), model)
    assert str(told).startswith("out of memory on this host, of which ") and "33554432.0 GiB more" in str(told)
    assert told.account[0].startswith("parameters") and told.account[-1].startswith("activations and the rest")
    assert any(line.startswith("gradient_checkpointing: true") for line in told.remedies)
    assert out_of_memory(RuntimeError("shapes differ"), cfg, identify({}), model) is None
