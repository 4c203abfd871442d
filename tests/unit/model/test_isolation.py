"""Models that would let packed documents see each other are refused; the attention refuses what it does not know."""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from allranks.errors import ConfigError
from allranks.model import isolation
from allranks.model.attention import Documents, packed_attention
from allranks.model.build import build_model
from allranks.model.isolation import carries_state, probe_isolation
from tests.tiny_models import config_for, make_batch, one_process, saved_model


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    """Mamba: every token changes a state that all later ones read."""
    config = AutoConfig.for_model("mamba", vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4)
    folder = tmp_path_factory.mktemp("mamba")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_a_recurrent_model_is_refused_for_packing(recurrent):
    for keys in ({"sample_packing": True}, {"sample_packing": False, "micro_batch_size": 2}):
        with pytest.raises(
            ConfigError, match=r"leak into each other; set sample_packing: false and micro_batch_size: 1"
        ):
            build_model(config_for(recurrent, **keys), one_process())


def test_a_recurrent_model_trains_on_one_document_at_a_time(recurrent):
    model = build_model(config_for(recurrent, sample_packing=False), one_process())
    loss = model.forward_loss(make_batch(1, (9,)))
    loss.backward()
    assert loss.item() > 0


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("qwen3_next", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("falcon_h1", {"mamba_d_ssm": 16, "mamba_n_heads": 4, "mamba_d_head": 4}),
    ],
)
def test_hybrids_are_known(model_type, more):
    config = AutoConfig.for_model(
        model_type,
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **more,
    )
    with torch.device("meta"):
        assert carries_state(AutoModelForCausalLM.from_config(config))


def test_attention_only_models_are_not_taken_for_recurrent():
    for name in ("llama", "gemma3", "gpt-oss", "mixtral"):
        assert not carries_state(AutoModelForCausalLM.from_pretrained(saved_model(name)))


def test_the_probe_sees_a_leak():
    model = build_model(config_for(saved_model("llama")), one_process())
    probe_isolation(model)
    model.hf_model.set_attn_implementation("sdpa")
    model.packed_kwargs = ""
    probe_isolation(model)
    forward = model.hf_model.forward
    model.hf_model.forward = lambda **given: forward(**{**given, "attention_mask": torch.ones_like(given["input_ids"])})
    with pytest.raises(ConfigError, match="see each other"):
        probe_isolation(model)


def test_a_model_off_the_attention_interface_is_probed_and_exact(tmp_path):
    """Falcon makes its own masks, which let packed documents see each other; it gets one from us."""
    config = AutoConfig.for_model(
        "falcon", vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=False
    )
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    model = build_model(config_for(tmp_path), one_process())
    batch = make_batch(2)
    got = model.logits(batch)
    start = 0
    for length in batch.lengths:
        with torch.no_grad():
            want = theirs(input_ids=batch.input_ids[:, start : start + length], use_cache=False).logits
        torch.testing.assert_close(got[:, start : start + length], want, rtol=1e-4, atol=1e-5)
        start += length


def test_a_window_that_only_the_mask_knows_is_not_lost(tmp_path):
    """Phi-MoE masks its window and does not hand it to its attention."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = AutoConfig.for_model(
        "phimoe",
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        **experts,
    )
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    model = build_model(config_for(tmp_path), one_process())
    with pytest.raises(
        ConfigError, match=r"sliding_window of 4 .* a document of 9 tokens; set attn_implementation: sdpa"
    ):
        model.forward_loss(make_batch(1))
    model.forward_loss(make_batch(1, (4, 3)))
    asked = build_model(config_for(tmp_path, attn_implementation="sdpa"), one_process())
    asked.hf_model.eval()
    batch = make_batch(1, (9,))
    with torch.no_grad():
        want = theirs(input_ids=batch.input_ids, use_cache=False).logits
    torch.testing.assert_close(asked.logits(batch), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"attention_mask": torch.ones(1, 1, 8, 8)}, "attention_mask"),
        ({"is_causal": False}, "is_causal"),
        ({"documents": None}, "does not pass on"),
        ({"documents": Documents((3, 4))}, "7 tokens"),
    ],
)
def test_attention_refuses_what_it_would_get_wrong(more, message):
    q = torch.randn(1, 2, 8, 4)
    given = {"attention_mask": None, "documents": Documents((3, 5)), **more}
    with pytest.raises(ConfigError, match=message):
        packed_attention(torch.nn.Module(), q, q, q, **given)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"flash_attention": True}, r"flash_attention_2 \(flash_attention\) runs on CUDA only.*remove it"),
        ({"attn_implementation": "flash_attention_3"}, "CUDA only"),
        ({"attn_implementation": "kernels-community/flash-attn3"}, "CUDA only"),
        ({"flex_attention": True}, "flex_attention has no backward pass on the CPU; remove it"),
    ],
)
def test_attention_that_the_cpu_lacks_is_refused_with_the_way_out(keys, said):
    with pytest.raises(ConfigError, match=said):
        build_model(config_for(saved_model("llama"), **keys), one_process())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "attention: each document by itself; loss: in chunks"),
        ({"sdp_attention": True}, "attention: sdpa; loss: in chunks"),
        ({"eager_attention": True, "chunked_cross_entropy": False}, "attention: eager; loss: from all logits"),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, "in chunks; layers compiled"),
        ({"torch_compile": "auto"}, "in chunks$"),
    ],
)
def test_what_runs_is_said(keys, said):
    assert re.search(said, build_model(config_for(saved_model("llama"), **keys), one_process()).ways())


def test_flash_attention_is_torchs_own_where_its_package_is_missing():
    """On CUDA, by what is chosen; the kernel itself needs a GPU."""
    cuda = torch.device("cuda")
    llama, capped = (AutoConfig.for_model(name) for name in ("llama", "gemma2"))
    assert isolation._names("flash_attention_2", llama, cuda) == ["allranks_packed", "flash_attention_2"]
    assert isolation._names("flash_attention_2", capped, cuda) == ["flash_attention_2"]
    assert isolation._names("flash_attention_3", llama, cuda) == ["flash_attention_3"]
