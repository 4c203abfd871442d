"""The tensors that a config.json tells of are those that the model's own code makes."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest

from allranks.config.sections.model import NUM_EXPERTS, ModelConfig
from allranks.plan.counted import alike, elements_below, num_parameters
from allranks.plan.described import UnknownShapeError
from allranks.plan.families import FAMILIES
from allranks.plan.model_shape import shape_of

SMALL = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
DEEPSEEK = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    ("mistral", {}),
    ("granite", {}),
    ("smollm3", {}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 32}),
    ("gemma", {"head_dim": 32}),
    ("gemma2", {"head_dim": 32}),
    ("gemma3_text", {"head_dim": 32}),
    ("olmo2", {}),
    ("olmo3", {}),
    ("phi3", {}),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 96, "decoder_sparse_step": 2}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 96, "qkv_bias": False}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 0}),
    ("qwen3_moe", {**EXPERTS, "head_dim": 32, "mlp_only_layers": [1]}),
    ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 24}),
    ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "hidden_size": 66}),
    ("deepseek_v2", {**DEEPSEEK, "topk_method": "group_limited_greedy"}),
    ("deepseek_v2", {**DEEPSEEK, "q_lora_rank": None}),
    ("deepseek_v3", DEEPSEEK),
]
OF_KIND = dict(reversed(CASES))


@pytest.mark.parametrize(("kind", "keys"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_parameters_are_as_many_as_the_models_code_makes(kind, keys):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SMALL, **keys, "pad_token_id": 0})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of({"model_type": kind, **SMALL, **keys})
    assert num_parameters(shape) == sum(one.numel() for one in model.parameters())
    # Tensors that both have under one name are of one shape; experts lie together in the model.
    made = {name: tuple(one.shape) for name, one in model.named_parameters()}
    both = [name for name in shape.tensors if name in made]
    assert [made[name] for name in both] == [shape.tensors[name] for name in both]
    assert len(both) > len(made) / 2


WITH_DEFAULTS = (
    *("num_key_value_heads", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("n_shared_experts", "q_lora_rank", "first_k_dense_replace"),
)


@pytest.mark.parametrize(("kind", "keys"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_config_leaves_out_is_what_the_models_code_takes_or_is_asked_for(kind, keys):
    """Each family has defaults of its own for what its config.json does not say."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = {**SMALL, "num_attention_heads": 8, **keys}
    for left_out in given.keys() & set(WITH_DEFAULTS):
        rest = {key: value for key, value in given.items() if key != left_out}
        try:
            shape = shape_of({"model_type": kind, **rest})
        except UnknownShapeError as refused:
            assert left_out in str(refused)
            continue
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**rest, "pad_token_id": 0}))
        assert num_parameters(shape) == sum(one.numel() for one in model.parameters()), left_out


MIXTURES = sorted(kind for kind, family in FAMILIES.items() if family.experts)
SPELLINGS = dict(zip(NUM_EXPERTS, (4, 6, 8), strict=True))
GIVEN = [keys for number in range(1, 1 + len(SPELLINGS)) for keys in permutations(SPELLINGS, number)]


@pytest.mark.parametrize("kind", MIXTURES)
def test_of_several_names_of_the_number_of_experts_the_one_counts_that_the_models_code_takes(kind: str) -> None:
    rest = {key: value for key, value in {**SMALL, **OF_KIND[kind]}.items() if key not in NUM_EXPERTS}
    unsaid = _num_made(kind, rest)
    for keys in GIVEN:
        given = {**rest, **{key: SPELLINGS[key] for key in keys}}
        try:
            found = num_parameters(shape_of({"model_type": kind, **given}))
        except UnknownShapeError as refused:
            assert "is missing" in str(refused)
            found = unsaid  # none of these names is one to the model's code
        assert found == _num_made(kind, given), keys


@pytest.mark.parametrize("kind", MIXTURES)
def test_an_override_by_another_name_says_the_number_of_experts_anew(kind: str) -> None:
    from transformers import AutoConfig

    rest = {key: value for key, value in {**SMALL, **OF_KIND[kind]}.items() if key not in NUM_EXPERTS}
    for stored, named in permutations(FAMILIES[kind].num_experts_keys, 2):
        settings = ModelConfig(base_model="m", overrides_of_model_config={named: 4})
        config = AutoConfig.for_model(kind, **rest, **{stored: 8})
        setattr(config, named, 4)  # as `model.source.read_config` does
        found = shape_of(settings.overridden({"model_type": kind, **rest, stored: 8}))
        assert found.num_experts == 4 == getattr(config, stored), (stored, named)


def _num_made(kind: str, keys: dict[str, Any]) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**keys, "pad_token_id": 0, "eos_token_id": 1})
    with torch.device("meta"):
        return sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize(
    ("kind", "keys", "window"),
    [
        ("qwen2", {"sliding_window": 128}, None),  # only with use_sliding_window
        ("qwen2", {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 0}, 128),
        ("mistral", {}, 4096),
        ("mistral", {"sliding_window": None}, None),
        ("llama", {}, None),
    ],
)
def test_a_window_counts_where_the_models_code_has_one(kind, keys, window):
    from transformers import AutoConfig

    shape = shape_of({"model_type": kind, **SMALL, **keys})
    assert (shape.window if shape.num_windowed_layers else None) == window
    assert getattr(AutoConfig.for_model(kind, **SMALL, **keys), "sliding_window", None) == window


ALL_KINDS = sorted({kind for kind, _ in CASES})
ON = {"use_sliding_window": True, "sliding_window": 32}


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        ON,
        {"use_sliding_window": True},
        {**ON, "use_sliding_window": False},
        {**ON, "sliding_window": None},
        {**ON, "max_window_layers": 5},
        {**ON, "num_hidden_layers": 31},
        {**ON, "layer_types": ["full_attention", "sliding_attention"] * 6 + ["full_attention"]},
        {**ON, "no_rope_layers": [1, 0] + [1] * 11},
    ],
    ids=str,
)
def test_as_many_layers_have_a_window_as_in_the_models_code(kind, keys):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = {**SMALL, **OF_KIND[kind], "num_hidden_layers": 13, **keys}
    config = AutoConfig.for_model(kind, **{**given, "pad_token_id": 0})
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(config).model.layers
    if kind in ("mistral", "mixtral", "phi3"):  # attention reads it of the config
        windows = [config.sliding_window for _ in layers]
    else:
        windows = [getattr(one.self_attn, "sliding_window", None) for one in layers]
    shape = shape_of({"model_type": kind, **given})
    made = [window for window in windows if window]
    assert (shape.num_windowed_layers if shape.window else 0) == len(made)
    assert not made or {shape.window} == set(made)


def config_of(
    kind: str, hidden: int, inner: int, heads: int, layers: int, vocabulary: int, **more: int
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        **more,
    }


# The number of parameters as their pages at huggingface.co tell it, with their config.json.
KNOWN = {
    "Qwen/Qwen-7B": (7_721_324_544, config_of("qwen", 4096, 22016, 32, 32, 151936)),
    "Qwen/Qwen-1_8B": (1_836_828_672, config_of("qwen", 2048, 11008, 16, 24, 151936)),
    "meta-llama/Meta-Llama-3-8B": (
        8_030_261_248,
        config_of("llama", 4096, 14336, 32, 32, 128256, num_key_value_heads=8),
    ),
    "Qwen/Qwen2.5-72B": (
        72_706_203_648,
        config_of("qwen2", 8192, 29568, 64, 80, 152064, num_key_value_heads=8),
    ),
    "mistralai/Mixtral-8x7B-v0.1": (
        46_702_792_704,
        config_of("mixtral", 4096, 14336, 32, 32, 32000, num_local_experts=8, num_experts_per_tok=2),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_published_models_have_their_number_of_parameters(name):
    published, config = KNOWN[name]
    assert num_parameters(shape_of(config)) == published


def test_of_a_family_that_is_not_known_the_files_tell():
    config = {"model_type": "brandnew", **SMALL}
    with pytest.raises(UnknownShapeError, match=r"'brandnew'.*safetensors"):
        shape_of(config)
    stored = {
        "model.embed_tokens.weight": (320, 64),
        "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "model.layers.3.self_attn.q_proj.weight": (64, 64),  # a fourth layer, of the three that the model has
        "lm_head.weight": (320, 64),
    }
    shape = shape_of({**config, "tie_word_embeddings": True}, stored)
    assert num_parameters(shape) == 320 * 64 + 64 * 64
    assert shape.num_layers == 3 and shape.hidden == 64


def test_what_is_missing_is_named():
    with pytest.raises(UnknownShapeError, match="num_hidden_layers"):
        shape_of({"model_type": "llama", "hidden_size": 64})
    with pytest.raises(UnknownShapeError, match="text"):
        shape_of({"model_type": "gemma3", "vision_config": {}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**6}, "1000000 layers are more than any"),
        ({"hidden_size": 2, "num_attention_heads": 4}, "hidden_size 2 is less than num_attention_heads 4"),
    ],
)
def test_numbers_that_no_model_has_are_named(changes, said):
    with pytest.raises(UnknownShapeError, match=said):
        shape_of({"model_type": "llama", **SMALL, **changes})


def test_layers_without_experts_and_windows_are_counted():
    mixture = shape_of({"model_type": "deepseek_v3", **SMALL, **DEEPSEEK})
    assert (mixture.num_dense_layers, mixture.num_experts, mixture.experts_per_token) == (1, 8, 2)
    assert (mixture.head_dim, mixture.value_head_dim, mixture.shared_intermediate) == (24, 16, 96)
    gemma = shape_of({"model_type": "gemma2", **SMALL, "sliding_window": 128})
    assert (gemma.window, gemma.num_windowed_layers) == (128, 2)
    of_experts = [name for name in mixture.tensors if ".experts." in name]
    assert sum(math.prod(mixture.tensors[name]) for name in of_experts) == 2 * 8 * 3 * 48 * 64


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"num_key_value_heads": "many"}, "num_key_value_heads .* it is 'many'"),
        ({"num_attention_heads": None, "n_head": 0}, "n_head is 0"),
        ({"model_type": "mistral", "sliding_window": "4096"}, "sliding_window .* it is '4096'"),
        ({"model_type": "mistral", "sliding_window": -5}, "sliding_window is -5"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is neither true nor false; it is 'false'"),
        ({"attention_bias": 1}, "attention_bias is neither true nor false; it is 1"),
        ({"model_type": "qwen2", "use_sliding_window": "no"}, "use_sliding_window is neither true nor false"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": 3}, "mlp_only_layers is no list"),
        ({"num_key_value_heads": 3}, "num_attention_heads 8 is no multiple of num_key_value_heads 3"),
        ({"num_key_value_heads": 10**30}, "no multiple of num_key_value_heads"),
        ({"intermediate_size": 1.5}, "intermediate_size .* it is 1.5"),
        ({"hidden_size": 10**30}, "hidden_size .* more than any model has"),
        ({"vocab_size": 10**30}, "vocab_size .* more than any model has"),
        ({"head_dim": 10**30}, "head_dim .* more than any model has"),
        ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5}, "5 is more than the 4 experts"),
    ],
)
def test_a_config_that_is_of_no_model_is_refused(keys, told):
    usual = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}
    usual |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_key_value_heads": 8}
    with pytest.raises(UnknownShapeError, match=told):
        shape_of({**usual, "intermediate_size": 96, "vocab_size": 1000, **keys})


def test_experts_of_a_layer_are_counted_together_and_none_is_lost():
    def mixture(experts):
        return shape_of({"model_type": "deepseek_v3", **SMALL, **DEEPSEEK, "n_routed_experts": experts})

    few, many = mixture(8), mixture(64)
    assert len(alike(many)) == len(alike(few)) < len(few.tensors) < len(many.tensors)
    for shape in (few, many):
        assert sum(alike(shape).values()) == len(shape.tensors)
        assert all(shape.tensors[name] == size for name, size in alike(shape))
        assert num_parameters(shape) == sum(map(math.prod, shape.tensors.values()))
        below = [size for size in map(math.prod, shape.tensors.values()) if size < 5000]
        assert elements_below(shape, 5000) == sum(below) and below
