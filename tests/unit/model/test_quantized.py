"""Quantized base weights are those that transformers and bitsandbytes make; what cannot be done is refused first."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from peft import inject_adapter_in_model
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError
from allranks.model.build import build_model
from allranks.model.placement import Placement
from allranks.model.quantized import quantized_layers
from allranks.model.train_model import TrainModel
from tests.tiny_models import config_for, make_batch, one_process, saved_model

LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
ONE = make_batch(1, (11,))

# Keys -> transformers' name for the same.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qlora": (
        {"adapter": "qlora"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    "fp4, plain scales, one layer left": (
        {
            "load_in_4bit": True,
            "bnb_config_kwargs": {
                "bnb_4bit_quant_type": "fp4",
                "bnb_4bit_use_double_quant": False,
                "llm_int8_skip_modules": ["o_proj"],
            },
        },
        {"load_in_4bit": True, "llm_int8_skip_modules": ["o_proj", "lm_head"]},
    ),
    "8 bits": ({"load_in_8bit": True}, {"load_in_8bit": True}),
    "8 bits without a threshold": (
        {"load_in_8bit": True, "bnb_config_kwargs": {"llm_int8_threshold": 0.0}},
        {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    ),
}


def build(name: str = "llama", placement: Placement | None = None, **keys: Any) -> TrainModel:
    return build_model(config_for(saved_model(name), **{**LORA, **keys}), placement or one_process())


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
@pytest.mark.parametrize("form", FORMS)
def test_the_base_is_the_one_that_transformers_quantizes(form, name):
    keys, theirs = FORMS[form]
    model = build(name, **keys)
    if "load_in_4bit" in theirs:
        theirs = {**theirs, "bnb_4bit_compute_dtype": torch.float32}
    expected = AutoModelForCausalLM.from_pretrained(
        saved_model(name), dtype=torch.float32, quantization_config=BitsAndBytesConfig(**theirs)
    )
    for layer in expected.modules():  # bitsandbytes' packing for AVX512 in eval mode fails on rows shorter than a block
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    for train in (True, False):
        model.hf_model.train(train)
        expected.train(train)
        with torch.no_grad():
            assert torch.equal(model.logits(ONE), expected(ONE.input_ids).logits)
    full = build_model(config_for(saved_model(name)), one_process())
    assert not torch.equal(model.logits(ONE), full.logits(ONE))
    assert model.num_parameters - model.num_trainable == full.num_parameters


def test_what_is_quantized():
    model = build(lora_modules_to_save=["embed_tokens", "lm_head"], adapter="qlora")
    held = sum(layer.weight.nbytes for layer in quantized_layers(model.hf_model))
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)  # two layers: q and o, k and v, the three of the MLP
    assert held == linear // 2
    others = {name for name, p in model.hf_model.named_parameters() if p.dtype == torch.uint8}
    assert len(others) == 14 and not any("lm_head" in name or "embed_tokens" in name for name in others)


def test_a_model_that_stays_mostly_as_it_is_is_told_of():
    dense, experts = build(adapter="qlora"), build("mixtral", adapter="qlora")
    assert dense.packed and dense.packed.num_weights == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert dense.packed.warning(dense.num_parameters) is None
    assert experts.packed and experts.packed.num_weights < experts.num_parameters / 2
    assert "of the parameters are in 4 bits: " in (experts.packed.warning(experts.num_parameters) or "")


def test_evaluation_leaves_the_weights_alone():
    model = build(adapter="qlora")
    before = [layer.weight.clone() for layer in quantized_layers(model.hf_model)]
    first = model.logits(ONE)
    model.hf_model.eval()
    model.logits(ONE)
    model.hf_model.train()
    assert torch.equal(model.logits(ONE), first)
    assert all(torch.equal(a, layer.weight) for a, layer in zip(before, quantized_layers(model.hf_model), strict=True))


@pytest.fixture
def mesh():
    """A mesh of one rank: FSDP gathers and converts as it does on many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("shard",))
    dist.destroy_process_group()


@pytest.mark.parametrize("keys", [{"adapter": "qlora"}, {"load_in_8bit": True}], ids=["4", "8"])
def test_packed_weights_survive_the_mixed_precision_of_fsdp(mesh, keys):
    sharded = build(placement=Placement("fsdp", torch.device("cpu"), mesh), fsdp_version=2, bf16=True, **keys)
    assert {layer.weight.dtype for layer in quantized_layers(sharded.hf_model)} == {torch.bfloat16}
    # bfloat16 throughout rounds in the same places, without any conversion by FSDP.
    plain = build(bf16="full", **keys)
    assert torch.equal(sharded.logits(ONE), plain.logits(ONE))


def test_a_storage_that_fsdp_would_convert_is_refused(mesh):
    placement = Placement("fsdp", torch.device("cpu"), mesh)
    keys = {"adapter": "qlora", "bnb_config_kwargs": {"bnb_4bit_quant_storage": "float32"}}
    build(placement=placement, **keys)
    with pytest.raises(ConfigError, match=r"bnb_4bit_quant_storage: float32, but the run computes in bfloat16"):
        build(placement=placement, bf16=True, **keys)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to train": ({"adapter": None, "load_in_4bit": True}, "load_in_4bit: quantized weights cannot be trained"),
    "nothing to train, 8": ({"adapter": None, "load_in_8bit": True}, "load_in_8bit: quantized weights cannot be train"),
    "qlora over 8": ({"adapter": "qlora", "load_in_8bit": True}, "load_in_8bit: .* write `adapter: lora`"),
    "qlora without": ({"adapter": "qlora", "load_in_4bit": False}, "load_in_4bit: contradicts `adapter: qlora`"),
    "both": ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit: excludes load_in_4bit"),
    "dora": ({"adapter": "qlora", "peft_use_dora": True}, "peft_use_dora: PEFT reads the norms of quantized"),
    "experts of what": (
        {"quantize_moe_experts": True},
        "quantize_moe_experts: says how experts are held beside quantized linear layers: add `load_in_4bit: true`",
    ),
    "idle": ({"bnb_config_kwargs": {"bnb_4bit_quant_type": "fp4"}}, "bnb_config_kwargs: has no effect without"),
    "8 for 4": (
        {"load_in_4bit": True, "bnb_config_kwargs": {"llm_int8_threshold": 3.0}},
        "bnb_config_kwargs.llm_int8_threshold: is about 8-bit weights, and these have 4",
    ),
    "storage under FSDP": (
        {"adapter": "qlora", "bnb_config_kwargs": {"bnb_4bit_quant_storage": "uint8"}, "fsdp_version": 2, "bf16": True},
        "bnb_config_kwargs.bnb_4bit_quant_storage: differs from what the run computes in",
    ),
    "storage under ZeRO": (
        {"adapter": "qlora", "bnb_config_kwargs": {"bnb_4bit_quant_storage": "float16"}, "bf16": True}
        | {"deepspeed": {"zero_optimization": {"stage": 2}}},
        "bnb_config_kwargs.bnb_4bit_quant_storage: differs from what the run computes in",
    ),
    "offload": (
        {"load_in_8bit": True, "bnb_config_kwargs": {"llm_int8_enable_fp32_cpu_offload": True}},
        "llm_int8_enable_fp32_cpu_offload: true: layers are not placed by hand",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_while_the_config_is_read(case):
    keys, message = REFUSED[case]
    flat = {key: value for key, value in {**LORA, **keys}.items() if value is not None}
    if flat.get("adapter") is None:
        flat = {key: value for key, value in flat.items() if not key.startswith("lora")}
    with pytest.raises(ConfigError, match=message):
        config_for(saved_model("llama"), **flat)


def test_a_resolved_config_is_the_same_again():
    config = config_for(saved_model("llama"), **{**LORA, "adapter": "qlora"})
    assert config.adapter.load_in_4bit
    assert resolve_mapping(config.flat()).flat() == config.flat()


def test_without_the_library(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ConfigError, match="load_in_4bit needs bitsandbytes: pip install"):
        build(adapter="qlora")


def saved_quantized(folder: Path, **settings: Any) -> Path:
    config = BitsAndBytesConfig(**settings)
    model = AutoModelForCausalLM.from_pretrained(saved_model("llama"), dtype=torch.float32, quantization_config=config)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "adapter"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, "qlora"),
        ({"load_in_4bit": True}, "lora"),
        ({"load_in_8bit": True}, "lora"),
    ],
    ids=["nf4", "fp4", "8"],
)
def test_a_base_model_that_was_saved_quantized(tmp_path, settings, adapter):
    folder = saved_quantized(tmp_path / "base", **settings)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    model = build_model(config_for(folder, **{**LORA, "adapter": adapter}), one_process())
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ONE), expected(ONE.input_ids).logits, rtol=0, atol=0)
    assert not hasattr(model.config, "quantization_config")


def test_a_stored_quantization_that_cannot_be_trained_over(tmp_path):
    folder = saved_quantized(tmp_path / "base", load_in_4bit=True)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, r"holds weights in 4 bits, which cannot be trained: add `adapter: qlora`"),
        ({**LORA, "load_in_8bit": True}, r"load_in_8bit: .* holds weights in 4 bits"),
        (
            {
                **LORA,
                "lora_modules_to_save": ["q_proj"],
                "lora_target_linear": False,
                "lora_target_modules": ["v_proj"],
            },
            r"q_proj.weight is stored quantized",
        ),
        (
            {**LORA, "adapter": "qlora", "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}},
            r"bnb_4bit_use_double_quant: .* quantized already",
        ),
    ]
    for keys, message in cases:
        with pytest.raises(ConfigError, match=message):
            build_model(config_for(folder, **keys), one_process())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"holds weights quantized by gptq, .* with `adapter: qlora`"):
        build_model(config_for(folder, **LORA), one_process())


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# How the experts are held, and which models have theirs in one tensor: rows of outputs, and rows of inputs with biases.
EXPERT_FORMS = ("qlora", "fp4, plain scales, one layer left", "8 bits")


def with_packed_experts(name: str, theirs: dict[str, Any]) -> PreTrainedModel:
    """transformers' quantized model, whose experts bitsandbytes itself packs and unpacks."""
    if "load_in_4bit" in theirs:
        theirs = {**theirs, "bnb_4bit_compute_dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(
        saved_model(name), dtype=torch.float32, quantization_config=BitsAndBytesConfig(**theirs)
    ).train()
    for module in list(model.modules()):
        for parameter, value in list(module.named_parameters(recurse=False)):
            if value.ndim < 3:
                continue
            if "load_in_4bit" in theirs:
                options = {
                    "compress_statistics": theirs.get("bnb_4bit_use_double_quant", False),
                    "quant_type": theirs.get("bnb_4bit_quant_type", "fp4"),
                }
                replace_parameter_4bit(module, parameter, **options)
            else:
                rows, scales, _ = int8_vectorwise_quant(value.detach().to(torch.float16).flatten(0, 1))
                value.data = int8_vectorwise_dequant(rows, scales).view_as(value)
    return model


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss"])
@pytest.mark.parametrize("form", EXPERT_FORMS)
def test_experts_are_those_that_bitsandbytes_packs(form, name):
    keys, theirs = FORMS[form]
    model = build(name, quantize_moe_experts=True, **keys)
    with torch.no_grad():
        expected = with_packed_experts(name, theirs)(ONE.input_ids).logits
    torch.testing.assert_close(model.logits(ONE), expected, rtol=1e-5, atol=1e-5)
    without = build(name, **keys)
    assert not torch.equal(model.logits(ONE), without.logits(ONE))
    assert model.num_parameters == without.num_parameters
    held = [layer.weight.nbytes for layer in quantized_layers(model.hf_model)]
    bits = 8 if "load_in_8bit" in keys else 4
    assert model.packed and sum(held) * 8 == model.packed.num_weights * bits
    assert model.packed.warning(model.num_parameters) is None


@pytest.mark.parametrize("keys", [{"adapter": "qlora"}, {"load_in_8bit": True}], ids=["4", "8"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_an_adapter_over_packed_experts_is_that_over_whole_ones(tmp_path, keys, recomputed):
    """Beside PEFT over a plain model that has the same experts; the second pass would see what the first left."""
    ours = build(
        "qwen3-moe",
        quantize_moe_experts=True,
        lora_target_parameters=EXPERTS,
        gradient_checkpointing=recomputed,
        **keys,
    )
    adapted = {name: value for name, value in ours.hf_model.named_parameters() if value.requires_grad}
    theirs = with_packed_experts("qwen3-moe", FORMS["qlora" if "adapter" in keys else "8 bits"][1])
    for module in theirs.modules():  # as plain parameters, which PEFT knows
        if hasattr(module, "parametrizations"):
            for parameter in list(module.parametrizations):
                whole = getattr(module, parameter).detach().clone()
                parametrize.remove_parametrizations(module, parameter, leave_parametrized=False)
                setattr(module, parameter, torch.nn.Parameter(whole, requires_grad=False))
    assert ours.peft_config is not None
    inject_adapter_in_model(ours.peft_config, theirs)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if value.requires_grad:
                value.copy_(adapted[name] if ".lora_A." in name else torch.randn_like(value) * 0.1)
                adapted[name].copy_(value)
    for _ in range(2):
        loss = ours.forward_losses(ONE).cross_entropy
        loss.backward()
        logits = theirs(ONE.input_ids).logits[0, ONE.label_positions]
        expected = torch.nn.functional.cross_entropy(logits, ONE.labels, reduction="sum")
        expected.backward()
        torch.testing.assert_close(loss, expected)
    gradients = {name: value.grad for name, value in theirs.named_parameters() if value.requires_grad}
    assert any(".experts." in name for name in gradients) and gradients.keys() == adapted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(adapted[name].grad, gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_no_whole_experts_are_kept_for_the_backward_pass():
    model = build("qwen3-moe", adapter="qlora", quantize_moe_experts=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    experts: Any = model.hf_model.model.layers[0].mlp.experts
    whole = min(packed.shape.numel() for packed in experts.packed_parameters.values()) * 4
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.forward_losses(ONE).cross_entropy
    assert kept and max(kept) < whole
    loss.backward()
    assert experts._read is None  # nor after it


def test_experts_that_stay_as_they_are():
    left = {"bnb_config_kwargs": {"llm_int8_skip_modules": ["experts"]}}
    model = build("qwen3-moe", adapter="qlora", quantize_moe_experts=True, **left)
    assert model.hf_model.model.layers[0].mlp.experts.gate_up_proj.dtype == torch.float32
    without = build("mixtral", adapter="qlora")
    assert without.packed and "`quantize_moe_experts: true`" in (without.packed.warning(without.num_parameters) or "")
    dense = build(adapter="qlora", quantize_moe_experts=True)
    assert dense.packed and "it has no effect" in (dense.packed.warning(dense.num_parameters) or "")
