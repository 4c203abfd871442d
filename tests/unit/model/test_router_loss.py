"""The router loss of mixtures: transformers' own, block by block; and no loss of a model's own is passed over."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError
from allranks.model.build import build_model
from allranks.model.router import RouterLoss, router_loss
from tests.tiny_models import VOCABULARY, config_for, flat_for, make_batch, make_model, one_process, saved_model

ON = {"output_router_logits": True, "router_aux_loss_coef": 0.7}

# Mixtures that say differently how many experts there are, route differently, or hand their logits on in another way.
MIXTURES = {
    "mixtral": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 16},
    "qwen3_moe": {"mlp_only_layers": [0]},
    "olmoe": {},
    "phimoe": {},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "granitemoe": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0},
    "minimax_m2": {"rotary_dim": 8},
}


def mixture(name, folder, **changes):
    """A tiny random mixture, saved; its config asks for the router loss."""
    keys = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(name, **{**keys, **MIXTURES[name], **ON, **changes})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model.train()


def trained_loss(model, batch):
    losses = model.forward_losses(batch)
    mean = losses.cross_entropy / len(batch.labels)
    return mean + model.router.coefficient * losses.router / len(batch.block_lengths)


def labels_of(batch):
    labels = torch.full_like(batch.input_ids, -100)
    labels[0, batch.label_positions + 1] = batch.labels
    return labels


@pytest.mark.parametrize("name", MIXTURES)
def test_of_one_block_it_is_what_transformers_trains_and_so_are_the_gradients(name, tmp_path):
    theirs = mixture(name, tmp_path)
    ours = build_model(config_for(tmp_path), one_process())
    batch = make_batch(1, (17,))
    expected = theirs(input_ids=batch.input_ids, labels=labels_of(batch), use_cache=False)
    assert expected.aux_loss > 0.5
    loss = trained_loss(ours, batch)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.loss.backward()
    gradients = dict(ours.hf_model.named_parameters())
    for parameter, tensor in theirs.named_parameters():
        if tensor.grad is not None:
            torch.testing.assert_close(gradients[parameter].grad, tensor.grad, rtol=1e-3, atol=1e-4, msg=parameter)


def test_blocks_count_each_by_itself_however_they_are_put_into_rows(tmp_path):
    mixture("mixtral", tmp_path)
    model = build_model(config_for(tmp_path), one_process())
    batches = [make_batch(seed, (length,)) for seed, length in ((1, 9), (2, 5), (3, 14))]
    apart = sum(model.forward_losses(batch).router for batch in batches)
    row = one_row(batches)
    together = model.forward_losses(row).router
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
    pooled = model.forward_losses(dataclasses.replace(row, block_lengths=(28,))).router
    assert abs(3 * pooled - apart) > 1e-3, "as one sample the row would have another loss"


def test_padding_does_not_count(tmp_path):
    mixture("mixtral", tmp_path)
    model = build_model(config_for(tmp_path), one_process())
    batch, padding = make_batch(1, (9,)), make_batch(2, (6,))
    padded = dataclasses.replace(
        one_row([batch, padding]), label_positions=batch.label_positions, labels=batch.labels, block_lengths=(9,)
    )
    torch.testing.assert_close(trained_loss(model, padded), trained_loss(model, batch), rtol=1e-5, atol=1e-5)


def one_row(batches):
    starts = [sum(len(batch.input_ids[0]) for batch in batches[:index]) for index in range(len(batches))]
    return dataclasses.replace(
        batches[0],
        input_ids=torch.cat([batch.input_ids for batch in batches], dim=1),
        position_ids=torch.cat([batch.position_ids for batch in batches], dim=1),
        lengths=tuple(length for batch in batches for length in batch.lengths),
        label_positions=torch.cat(
            [batch.label_positions + start for batch, start in zip(batches, starts, strict=True)]
        ),
        labels=torch.cat([batch.labels for batch in batches]),
        block_lengths=tuple(length for batch in batches for length in batch.block_lengths),
    )


@pytest.mark.parametrize(
    "keys", [{"chunked_cross_entropy": False}, {"attn_implementation": "eager"}, {"gradient_checkpointing": True}]
)
def test_the_ways_to_compute_do_not_change_it(tmp_path, keys):
    mixture("qwen3_moe", tmp_path)
    batch = make_batch(1)
    plain = build_model(config_for(tmp_path), one_process())
    other = build_model(config_for(tmp_path, **keys), one_process())
    torch.testing.assert_close(trained_loss(other, batch), trained_loss(plain, batch), rtol=1e-5, atol=1e-5)


def test_the_config_says_whether_and_how_much(tmp_path):
    mixture("olmoe", tmp_path, output_router_logits=False)

    def router(**overrides):
        return build_model(config_for(tmp_path, overrides_of_model_config=overrides), one_process()).router

    assert router() is None
    assert router(output_router_logits=True) == RouterLoss(coefficient=0.7, top_k=2)
    axolotls = {"model_config": {"output_router_logits": True, "router_aux_loss_coef": 0.03}}
    assert build_model(config_for(tmp_path, **axolotls), one_process()).router == RouterLoss(0.03, 2)
    assert router(output_router_logits=True, router_aux_loss_coef=0.0) is None


def test_evaluation_is_of_cross_entropy_alone(tmp_path):
    mixture("mixtral", tmp_path)
    model = build_model(config_for(tmp_path), one_process())
    batch = make_batch(1)
    torch.testing.assert_close(model.forward_loss(batch), model.forward_losses(batch).cross_entropy)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        (
            "mixtral",
            {"router_aux_loss_coef": 0.1},
            "router_aux_loss_coef changes nothing.*`output_router_logits: true`",
        ),
        ("llama", {"z_loss_coefficient": 0.1}, "z_loss_coefficient changes nothing.*remove it"),
    ],
)
def test_a_loss_that_would_not_be_trained_is_refused(name, overrides, said):
    model = make_model(name)
    cfg = resolve_mapping(flat_for(saved_model(name), overrides_of_model_config=overrides))
    with pytest.raises(ConfigError, match=said):
        router_loss(model, cfg)


def test_a_model_whose_own_loss_holds_more_is_refused():
    """Bamba's z-loss, as it stands in transformers."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    mamba = {"num_key_value_heads": 2, "mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [0]}
    config = AutoConfig.for_model("bamba", vocab_size=VOCABULARY, z_loss_coefficient=0.1, **shape, **mamba)
    model = AutoModelForCausalLM.from_config(config)
    cfg = resolve_mapping(flat_for(saved_model("llama")))
    with pytest.raises(ConfigError, match=r"Bamba.* trains another loss .*z_loss_coefficient 0.1"):
        router_loss(model, cfg)
