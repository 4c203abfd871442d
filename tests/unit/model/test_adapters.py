"""LoRA goes where it is asked to, starts as PEFT starts it, and not at all where a name is wrong."""

import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from allranks.errors import ConfigError
from allranks.model.adapter import adapter_tensors, saved_name
from allranks.model.build import build_model
from allranks.model.train_model import TrainModel
from tests.tiny_models import config_for, make_batch, one_process, saved_model


def build(name: str = "llama", **keys) -> TrainModel:
    return build_model(config_for(saved_model(name), adapter="lora", lora_r=4, lora_alpha=8, **keys), one_process())


def adapted(model: TrainModel) -> set[str]:
    return {name.split(".lora_A")[0] for name, _ in model.hf_model.named_parameters() if ".lora_A." in name}


def test_every_linear_layer_but_the_output_layer():
    found = adapted(build(lora_target_linear=True))
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    parts += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert found == {f"model.layers.{layer}.{part}" for layer in range(2) for part in parts}


def test_linear_layers_that_are_named_as_experts_are_and_no_experts():
    found = adapted(build("deepseek-v3", lora_target_linear=True))
    of_mlp = {name for name in found if ".mlp." in name}
    parts = ("gate_proj", "up_proj", "down_proj")
    assert of_mlp == {f"model.layers.{at}.{part}" for at in ("0.mlp", "1.mlp.shared_experts") for part in parts}
    assert len(found - of_mlp) == 2 * 5


def test_a_pattern_is_of_whole_names():
    found = adapted(build("deepseek-v3", lora_target_modules=r"model\.layers\.0\..*(up|o)_proj"))
    assert found == {"model.layers.0.mlp.up_proj", "model.layers.0.self_attn.o_proj"}


def test_adapters_of_ours_can_be_continued(tmp_path):
    first = build("deepseek-v3", lora_target_linear=True, lora_dropout=0.1)
    first.peft_config.save_pretrained(str(tmp_path))
    tensors = {saved_name(name): tensor for name, tensor in adapter_tensors(first.hf_model).items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    again = build("deepseek-v3", lora_model_dir=str(tmp_path))
    assert adapted(again) == adapted(first)
    layer = again.hf_model.get_submodule("model.layers.0.mlp.gate_proj")
    assert not isinstance(layer, ParamWrapper)
    batch = make_batch(3)
    torch.testing.assert_close(again.forward_loss(batch), first.forward_loss(batch))


def test_by_name_and_layer():
    found = adapted(build(lora_target_modules=["q_proj", "v_proj"], peft_layers_to_transform=[1]))
    assert found == {"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"}


def test_only_the_adapter_is_trained():
    model = build(lora_target_modules=["q_proj"], lora_modules_to_save=["lm_head"])
    trained = {name for name, p in model.hf_model.named_parameters() if p.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"lm_head.modules_to_save.default.weight"}
    assert model.num_trainable == sum(p.numel() for p in model.hf_model.parameters() if p.requires_grad)


def test_the_first_loss_is_that_of_the_base_model():
    batch = make_batch(1)
    base = build_model(config_for(saved_model("llama")), one_process()).forward_loss(batch)
    for keys in ({"lora_target_linear": True}, {"lora_target_linear": True, "peft_use_dora": True}):
        torch.testing.assert_close(build(**keys).forward_loss(batch), base, rtol=1e-5, atol=1e-5)


def test_first_values_depend_on_seed_and_name_only():
    one, again, other = (build(lora_target_modules=["q_proj"], seed=seed) for seed in (1, 1, 2))
    first, second, third = (dict(model.hf_model.named_parameters()) for model in (one, again, other))
    names = [name for name in first if ".lora_A." in name]
    assert all(torch.equal(first[name], second[name]) for name in names)
    assert not any(torch.equal(first[name], third[name]) for name in names)
    assert not torch.equal(first[names[0]], first[names[1]])
    wider = dict(build(lora_target_linear=True, seed=1).hf_model.named_parameters())
    assert all(torch.equal(first[name], wider[name]) for name in names)


@pytest.mark.parametrize("how", [None, "gaussian"])
def test_first_values_are_spread_as_peft_spreads_them(how):
    ours = dict(build(lora_target_modules=["down_proj"], peft_init_lora_weights=how).hf_model.named_parameters())
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["down_proj"], init_lora_weights=how or True)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(saved_model("llama")), config)
    for name, parameter in theirs.base_model.model.named_parameters():
        if ".lora_A." in name:
            ratio = (ours[name].std() / parameter.std()).item()
            assert 0.75 < ratio < 1.33, name  # 192 draws each
            if how is None:
                assert ours[name].abs().max() <= 1 / math.sqrt(48)
        elif ".lora_B." in name:
            assert not ours[name].any()


def test_scaling_and_dropout_reach_peft():
    layer = build(lora_target_modules=["q_proj"], peft_use_rslora=True, lora_dropout=0.25).hf_model
    q_proj = layer.model.layers[0].self_attn.q_proj
    assert q_proj.scaling["default"] == 8 / math.sqrt(4)
    assert q_proj.lora_dropout["default"].p == 0.25


def test_experts_adapted_as_peft_adapts_them(tmp_path):
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=targets, init_lora_weights=False
    )
    base = AutoModelForCausalLM.from_pretrained(saved_model("qwen3-moe"))
    theirs = get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path)
    keys = {"lora_target_modules": ["q_proj"], "lora_target_parameters": targets}
    ours = build("qwen3-moe", **keys, lora_model_dir=str(tmp_path))
    batch = make_batch(1, (9,))
    with torch.no_grad():
        want = theirs(input_ids=batch.input_ids).logits
    torch.testing.assert_close(ours.logits(batch), want, rtol=1e-5, atol=1e-5)
    alone = build("qwen3-moe", lora_target_parameters=targets)
    assert {name.rpartition(".lora_A")[0] for name in adapter_tensors(alone.hf_model) if ".lora_A." in name} == {
        f"model.layers.{layer}.mlp.experts{part}" for layer in (0, 1) for part in ("", ".base_layer")
    }


def test_adapters_of_peft_can_be_continued(tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(saved_model("llama"))
    theirs = get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path)
    ours = build(lora_target_modules=["q_proj", "v_proj"], lora_model_dir=str(tmp_path))
    batch = make_batch(1, (9,))
    with torch.no_grad():
        want = theirs(input_ids=batch.input_ids).logits
    torch.testing.assert_close(ours.logits(batch), want, rtol=1e-5, atol=1e-5)
    assert isinstance(theirs, PeftModel)
    with pytest.raises(ConfigError, match="does not fit the model"):
        (tmp_path / "adapter_config.json").write_text(
            (tmp_path / "adapter_config.json").read_text().replace('"v_proj"', '"k_proj"')
        )
        build(lora_model_dir=str(tmp_path), lora_target_modules=["q_proj"])
    with pytest.raises(ConfigError, match=r"no adapter_config\.json"):
        build(lora_model_dir=str(tmp_path / "nowhere"), lora_target_modules=["q_proj"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora_target_modules": ["q_proj", "c_attn"]}, r"has no module c_attn; it has q_proj, k_proj, v_proj"),
        ({"lora_target_modules": "nothing_.*"}, r"q_proj, k_proj"),
        (
            {"lora_target_parameters": ["mlp.experts.up"]},
            r"has no parameter mlp.experts.up; it has none but those of modules",
        ),
        (
            {"name": "deepseek-v3", "lora_target_linear": True, "peft_use_dora": True},
            r"peft_use_dora: .*lora_target_modules: \[q_a_proj, .*o_proj\]",
        ),
        (
            {"name": "qwen3-moe", "lora_target_modules": ["q_proj", "gate_proj", "down_proj"]},
            r"has no module down_proj, gate_proj; .*: lora_target_parameters: \[mlp.experts.gate_up_proj, mlp.e",
        ),
        ({"lora_target_parameters": ["x"], "lora_dropout": 0.1}, r"lora_dropout: does not go with"),
        ({"lora_target_linear": True, "lora_modules_to_save": ["wte"]}, r"has no module wte; it has .*embed_tokens"),
    ],
)
def test_wrong_names_list_the_right_ones(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(**keys)


def test_frozen_weights_are_held_in_half_precision_under_bf16():
    model = build(lora_target_linear=True, bf16=True)
    for name, parameter in model.hf_model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    loss = model.forward_loss(make_batch(1))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
