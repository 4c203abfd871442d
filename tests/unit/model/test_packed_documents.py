"""Packed documents give the loss of each document alone, whatever the architecture."""

import pytest
import torch
import torch.nn.functional as F

from allranks.model.build import build_model
from tests.tiny_models import ARCHITECTURES, config_for, make_batch, make_model, one_process, saved_model


def loss_of_documents_alone(model, batch):
    """By transformers itself: eager attention, one document a call, no packing anywhere."""
    logits, start = [], 0
    for length in batch.lengths:
        ids = batch.input_ids[:, start : start + length]
        logits.append(model(input_ids=ids, use_cache=False).logits[0])
        start += length
    return F.cross_entropy(torch.cat(logits)[batch.label_positions].float(), batch.labels, reduction="sum")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_loss_and_gradients_equal_those_of_documents_alone(name):
    batch = make_batch(1)
    alone = make_model(name)
    alone.set_attn_implementation("eager")
    expected = loss_of_documents_alone(alone, batch)
    expected.backward()
    packed = build_model(config_for(saved_model(name)), one_process())
    loss = packed.forward_loss(batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    gradients = dict(alone.named_parameters())
    for key, parameter in packed.hf_model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key].grad, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_transformers_own_packed_masks_give_the_same_loss(implementation):
    batch = make_batch(2)
    ours = build_model(config_for(saved_model("mistral")), one_process()).forward_loss(batch)
    cfg = config_for(saved_model("mistral"), attn_implementation=implementation)
    torch.testing.assert_close(build_model(cfg, one_process()).forward_loss(batch), ours, rtol=1e-5, atol=1e-5)


def test_what_happens_without_the_remedy():
    """The trap: a mask of ones, or the config's use_cache, and documents see each other."""
    model = make_model("llama")
    batch = make_batch(3)
    expected = loss_of_documents_alone(model, batch)
    for leak in ({"attention_mask": torch.ones_like(batch.input_ids), "use_cache": False}, {"use_cache": True}):
        logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, **leak).logits[0]
        leaked = F.cross_entropy(logits[batch.label_positions], batch.labels, reduction="sum")
        assert (leaked - expected).abs() > 1e-2


def test_padding_at_the_end_changes_nothing():
    model = build_model(config_for(saved_model("qwen3")), one_process())
    batch = make_batch(4)
    padded = make_batch(4)
    more = torch.zeros(1, 6, dtype=torch.int64)
    padded = type(batch)(
        torch.cat([batch.input_ids, more], 1),
        torch.cat([batch.position_ids, torch.arange(6)[None]], 1),
        (*batch.lengths, 6),
        batch.label_positions,
        batch.labels,
        batch.num_tokens,
        batch.block_lengths,
    )
    torch.testing.assert_close(model.forward_loss(padded), model.forward_loss(batch), rtol=1e-6, atol=1e-6)


def test_attention_under_autocast_is_asked_in_half_precision(monkeypatch):
    """Rotary positions widen queries and keys to float32, and FlashAttention's kernel would refuse them."""
    asked = set()

    def can_run(query, value, *others):
        asked.update((query.dtype, value.dtype))
        return False

    monkeypatch.setattr("allranks.model.varlen.can_run", can_run)
    mixed = build_model(config_for(saved_model("llama"), bf16=True), one_process())
    assert mixed.precision.mixed and next(mixed.hf_model.parameters()).dtype == torch.float32
    mixed.forward_loss(make_batch(1)).backward()
    assert asked == {torch.bfloat16}
