"""What is trained is what the model's own code in transformers would train."""

import functools
import logging

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from allranks.config.load import resolve_mapping
from allranks.model.build import build_model, parameters_on_meta
from allranks.model.router import router_loss
from tests.tiny_models import ARCHITECTURES, VOCABULARY, config_for, flat_for, make_batch, one_process, saved_model

# Keys of a model's config that change its logits or its loss.
FLAGS = [
    *((name, {}) for name in ARCHITECTURES),
    ("granite", {"logits_scaling": 3.0}),
    ("cohere", {"logit_scale": 0.3}),
    ("gemma2", {"final_logit_softcapping": 0.4}),
    ("gemma3", {"final_logit_softcapping": 0.4}),
    ("granite", {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2}),
]


@pytest.mark.parametrize(("name", "overrides"), FLAGS, ids=[f"{name} {' '.join(keys)}".strip() for name, keys in FLAGS])
def test_the_loss_is_the_models_own(name, overrides):
    folder = saved_model(name)
    config = AutoConfig.from_pretrained(folder, **overrides)
    theirs = AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager")
    batch = make_batch(3, (11,))
    labels = torch.full_like(batch.input_ids, -100)
    labels[0, batch.label_positions + 1] = batch.labels
    expected = theirs(input_ids=batch.input_ids, labels=labels, use_cache=False).loss
    ours = build_model(config_for(folder, overrides_of_model_config=overrides), one_process())
    torch.testing.assert_close(ours.forward_loss(batch) / len(batch.labels), expected, rtol=1e-5, atol=1e-5)


def with_a_loss_of_their_own() -> list[str]:
    """The architectures whose config has a key that names a loss, a coefficient or what is done to logits."""
    names = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING))
    return [name for name in names if any(part in key for key in _keys(name) for part in ("loss", "coef", "logit"))]


@functools.cache
def _keys(name: str) -> set[str]:
    return set(getattr(CONFIG_MAPPING[name], "__dataclass_fields__", {}))


def test_no_architecture_is_refused_and_every_router_loss_is_known(monkeypatch):
    """All that can be made small: those with a router loss have it found, to the coefficient of their config."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.ERROR)
    cfg = resolve_mapping(flat_for(saved_model("llama")))
    found, made = {}, 0
    for name in with_a_loss_of_their_own():
        try:
            model = _small(name)
        except Exception:  # needs a library, or numbers that fit each other in another way
            continue
        made += 1
        config = model.config.get_text_config()
        router = router_loss(model, cfg)  # raises where the loss is not the model's own
        coefficient = getattr(config, "router_aux_loss_coef", None)
        if router is not None:
            found[name] = router
            assert coefficient is None or router.coefficient == coefficient, name
    assert made > 30
    known = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "granitemoe", "gpt_oss", "jetmoe", "qwen3_next"}
    assert known <= found.keys()


def _small(name: str):
    config = AutoConfig.for_model(name)
    text = config.get_text_config()
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16}
    experts = dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4) | {"num_experts_per_tok": 2}
    for key, value in (sizes | experts).items():
        if hasattr(text, key):
            setattr(text, key, value)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:2]
    if hasattr(text, "output_router_logits"):
        text.output_router_logits = True
    with parameters_on_meta():
        return AutoModelForCausalLM.from_config(config)
