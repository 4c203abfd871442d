"""A small random copy of many kinds of model: their own code takes it, and the tokenizer still fits."""

import pytest
import torch
from transformers import AutoConfig

from allranks.errors import ConfigError
from allranks.model.shrink import random_model, shrink

# As they are published: (kind of model, what its config.json says beside the defaults).
FAMILIES = {
    "llama-3-8b": ("llama", {"num_key_value_heads": 8, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                   "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
    "qwen2.5-7b": ("qwen2", {"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}),
    "qwen3-0.6b": ("qwen3", {"head_dim": 128, "hidden_size": 1024, "tie_word_embeddings": True}),
    "qwen3-30b-a3b": ("qwen3_moe", {"num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1}),
    "mixtral": ("mixtral", {}),
    "gemma-1": ("gemma", {"head_dim": 256, "num_key_value_heads": 1}),
    "gemma-3": ("gemma3_text", {"num_hidden_layers": 26, "sliding_window_pattern": 6}),
    "phi-2": ("phi", {"partial_rotary_factor": 0.4, "hidden_size": 2560}),
    "phi-3-long": ("phi3", {"hidden_size": 3072, "num_attention_heads": 32, "original_max_position_embeddings": 4096,
                   "max_position_embeddings": 131072, "rope_scaling": {"type": "longrope",
                   "long_factor": [1.1] * 48, "short_factor": [1.0] * 48}}),
    "gpt-oss": ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}),
    "deepseek-v3": ("deepseek_v3", {}),
    "gpt2": ("gpt2", {}),
    "gemma-4": ("gemma4_text", {}),
    "mamba-2": ("mamba2", {}),
    "deepseek-v2": ("deepseek_v2", {"n_routed_experts": 160, "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3,
                    "topk_method": "group_limited_greedy", "num_hidden_layers": 60, "hidden_size": 5120}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_models_own_code_takes_it(name):
    kind, keys = FAMILIES[name]
    large = AutoConfig.for_model(kind, **keys)
    small = shrink(large)
    assert small.config.vocab_size == large.vocab_size and small.config.model_type == large.model_type
    assert small.config.hidden_size == 64 and 1 <= small.config.num_hidden_layers <= 3
    assert not getattr(small.config, "quantization_config", None)
    assert any(line.startswith(("num_hidden_layers", "n_layer")) for line in small.told)
    experts = getattr(small.config, "num_local_experts", None) or getattr(small.config, "num_experts", None)
    assert experts in (None, 4)
    model = random_model(small.config, seed=1)
    again = random_model(small.config, seed=1)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    outside = sum(one.numel() for one in model.parameters()) - 2 * small.config.vocab_size * 64
    assert outside < 3_000_000, "of its own it has next to nothing"


def test_every_kind_of_layer_is_there():
    small = shrink(AutoConfig.for_model("gemma3_text", num_hidden_layers=26, sliding_window_pattern=6)).config
    assert set(small.layer_types) == {"sliding_attention", "full_attention"}


def test_sizes_of_single_layers_are_small_too_and_go_with_their_layer():
    large = AutoConfig.for_model("gemma4_text").to_dict()
    own = {int(number): sizes for number, sizes in large["per_layer_config"].items()}
    assert own[5] == {"head_dim": 512} and large["head_dim"] == 256
    small = shrink(AutoConfig.for_model("gemma4_text")).config
    assert set(small.layer_types) == set(large["layer_types"])
    shapes = {name: tuple(one.shape) for name, one in random_model(small).named_parameters()}
    assert {shape for name, shape in shapes.items() if name.endswith("q_proj.weight")} == {(64, 64)}


def test_parts_that_know_of_each_others_width_shrink_together():
    small = shrink(AutoConfig.for_model("blt")).config.to_dict()
    assert small["global_config"]["hidden_size"] == small["encoder_config"]["hidden_size_global"] == 64
    assert small["vocab_size"] == 260 and small["encoder_hash_byte_group_vocab"] == 1000
    assert sum(one.numel() for one in random_model(AutoConfig.for_model(**small)).parameters()) < 2_000_000


def test_heads_share_keys_and_values_as_before():
    def heads(**keys):
        small = shrink(AutoConfig.for_model("llama", num_attention_heads=32, **keys)).config
        return small.num_attention_heads, small.num_key_value_heads

    assert heads(num_key_value_heads=32) == (4, 4)
    assert heads(num_key_value_heads=8) == (4, 2)
    assert heads(num_key_value_heads=1) == (4, 1)


def test_random_numbers_of_others_stay_as_they_are():
    config = shrink(AutoConfig.for_model("gpt2")).config
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    random_model(config)
    assert torch.equal(torch.rand(3), expected)


def test_code_that_takes_no_copy_is_told(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("sizes!")

    monkeypatch.setattr("allranks.model.shrink._try", refuse)
    with pytest.raises(ConfigError, match=r"no small copy of gpt2 .*sizes!"):
        shrink(AutoConfig.for_model("gpt2"))


def test_groups_of_experts_by_any_name_are_one():
    keys = {"num_experts": 8, "num_expert_group": 8, "num_hidden_layers": 4, "layer_group_size": 2, "vocab_size": 512}
    small = shrink(AutoConfig.for_model("bailing_hybrid", **keys, pad_token_id=0, eos_token_id=1)).config
    assert small.num_experts == 4 and small.num_expert_group == 1


@pytest.mark.parametrize("kind", ["nemotron", "hunyuan_v1_dense"])
def test_a_config_that_the_models_own_code_does_not_take_is_told_as_such(kind):
    # Sizes that the published config.json has, and transformers' default lacks.
    with pytest.raises(ConfigError, match=rf"the code of {kind} takes its config.json as little .*NoneType"):
        shrink(AutoConfig.for_model(kind, num_hidden_layers=2, vocab_size=512, pad_token_id=0))


def test_a_copy_that_stays_large_is_never_built(monkeypatch):
    import allranks.model.shrink as module

    monkeypatch.setattr(module, "_shrink_widths", lambda original, small, head_dim: None)
    monkeypatch.setattr(module, "random_model", lambda *args, **kwargs: pytest.fail("built"))
    with pytest.raises(ConfigError, match="too large for a rehearsal"):
        shrink(AutoConfig.for_model("llama", hidden_size=8192, intermediate_size=28672, vocab_size=128256))
