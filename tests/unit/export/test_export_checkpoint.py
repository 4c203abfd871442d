"""What is exported loads in plain transformers and PEFT and computes what the trained model computed."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from allranks.errors import CheckpointError, ConfigError, UsageError
from allranks.export import export as exporting
from allranks.model.build import build_model
from tests.tiny_models import VOCABULARY, config_for, one_process, saved_model
from tests.tiny_runs import BATCH, LORA, train

# Here logits are compared by the tests themselves.
export = partial(exporting.export, compare_logits=False)


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=BATCH.input_ids, use_cache=False).logits


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma3", "mixtral", "qwen3-moe", "gpt-oss"])
def test_full_model(tmp_path, name):
    trained = train(tmp_path, name)
    done = export(tmp_path, tmp_path / "out", max_shard_bytes=30_000)
    assert (done.kind, done.step) == ("model", 7)
    loaded, report = AutoModelForCausalLM.from_pretrained(done.folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits_of(loaded), trained.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama-tied", "mixtral", "qwen3-moe"])
def test_names_and_bytes_are_those_of_save_pretrained(tmp_path, name):
    train(tmp_path, name)
    out = export(tmp_path, tmp_path / "out").folder
    loaded = AutoModelForCausalLM.from_pretrained(out)
    loaded.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert (out / "tokenizer.json").is_file()


def test_dtype(tmp_path):
    train(tmp_path, "llama")
    out = export(tmp_path, tmp_path / "out", dtype="bfloat16").folder
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    with pytest.raises(UsageError, match="int4 is not one of float32"):
        export(tmp_path, tmp_path / "other", dtype="int4")


def test_mixed_precision_run_exports_what_it_computed_in(tmp_path):
    train(tmp_path, "llama", bf16=True)
    assert AutoModelForCausalLM.from_pretrained(export(tmp_path).folder).dtype == torch.bfloat16


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", LORA),
    "dora": ("qwen3", {**LORA, "peft_use_dora": True, "peft_use_rslora": True}),
    "embeddings": ("llama", {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied embeddings": ("llama-tied", {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]}),
    "only the tied embedding": ("llama-tied", {**LORA, "lora_modules_to_save": ["embed_tokens"]}),
    "lora on the embedding": ("llama", {**LORA, "lora_target_linear": False, "lora_target_modules": ["embed_tokens"]}),
    "lora on the tied embedding": (
        "llama-tied",
        {**LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj", "embed_tokens"]},
    ),
    "lora on the tied output": (
        "llama-tied",
        {**LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj", "lm_head"]},
    ),
    "only the tied output": ("llama-tied", {**LORA, "lora_modules_to_save": ["lm_head"]}),
    "lora on one and the other whole": (
        "llama-tied",
        {
            **LORA,
            "lora_target_linear": False,
            "lora_target_modules": ["embed_tokens"],
            "lora_modules_to_save": ["lm_head"],
        },
    ),
    "tied base": ("llama-tied", LORA),
    "bare parameters": ("qwen3-moe", {**LORA, "lora_target_parameters": ["mlp.experts.gate_up_proj"]}),
    "beside experts": ("deepseek-v3", {**LORA, "lora_dropout": 0.1}),
    "beside experts, and those": (
        "deepseek-v3",
        {
            "adapter": "lora",
            "lora_r": 3,
            "lora_alpha": 6,
            "lora_target_modules": r".*layers\.(0\.mlp|1\.mlp\.shared_experts|1\.self_attn)\.(gate|up|o)_proj",
            "lora_target_parameters": ["mlp.experts.down_proj", "mlp.gate.weight"],
        },
    ),
    "experts": ("mixtral", {**LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj", "v_proj"]}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter(tmp_path, name):
    architecture, keys = ADAPTERS[name]
    trained = train(tmp_path, architecture, **keys)
    done = export(tmp_path)
    assert done.kind == "adapter" and done.folder == tmp_path / "export"
    stored = load_file(done.folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == trained.model.num_trainable
    base = AutoModelForCausalLM.from_pretrained(saved_model(architecture))
    loaded = PeftModel.from_pretrained(base, done.folder)
    torch.testing.assert_close(logits_of(loaded), trained.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_model(tmp_path, name):
    architecture, keys = ADAPTERS[name]
    trained = train(tmp_path, architecture, **keys)
    done = export(tmp_path, merge=True)
    assert done.kind == "merged model"
    loaded, report = AutoModelForCausalLM.from_pretrained(done.folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits_of(loaded), trained.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "lora on the tied embedding", "tied embeddings"])
@pytest.mark.parametrize("merge", [True, False])
def test_an_export_says_that_it_was_compared_and_two_are_the_same(tmp_path, name, merge):
    architecture, keys = ADAPTERS[name]
    train(tmp_path, architecture, **keys)
    said: list[str] = []
    first = export(tmp_path, tmp_path / "a", merge=merge, report=said.append).folder
    assert sum(line.startswith("compared with the trained model: all ") for line in said) == 1
    second = export(tmp_path, tmp_path / "b", merge=merge).folder
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


@pytest.mark.parametrize("name", ["lora on the tied embedding", "lora on the tied output"])
def test_a_merge_that_is_not_what_was_trained_is_refused_and_leaves_nothing(tmp_path, monkeypatch, name):
    architecture, keys = ADAPTERS[name]
    train(tmp_path, architecture, **keys)
    monkeypatch.setattr("allranks.export.merge._part_tied", lambda model: None)
    with pytest.raises(CheckpointError, match=r"not what was trained: .*(embed_tokens|lm_head).* differ"):
        export(tmp_path, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], None])
def test_new_tokens_whose_rows_would_not_be_kept_are_refused_with_the_key(tmp_path, architecture, saved):
    with pytest.raises(ConfigError, match=r"set lora_modules_to_save: \[embed_tokens, lm_head\]"):
        train(tmp_path, architecture, **LORA, lora_modules_to_save=saved, tokenizer=range(VOCABULARY + 1))


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_rows_of_new_tokens_are_those_that_were_trained(tmp_path, architecture):
    keys = {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"], "tokenizer": range(VOCABULARY + 3)}
    trained = train(tmp_path, architecture, **keys)
    loaded = AutoModelForCausalLM.from_pretrained(export(tmp_path, merge=True).folder)
    torch.testing.assert_close(logits_of(loaded), trained.logits, rtol=1e-4, atol=1e-4)


def test_what_rounding_takes_of_the_adapters_change_is_said(tmp_path):
    train(tmp_path, "llama", **LORA)
    said: list[str] = []
    export(tmp_path, merge=True, dtype="bfloat16", report=said.append)
    [line] = [line for line in said if line.startswith("compared")]
    assert "rounding to bfloat16 is " in line


QUANTIZED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "4 bits": (
        {"adapter": "qlora"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    "8 bits": ({"load_in_8bit": True}, {"load_in_8bit": True}),
}


@pytest.mark.parametrize("form", QUANTIZED)
def test_an_adapter_over_a_quantized_base(tmp_path, form):
    """On the base that transformers quantizes the same way it computes what was trained; merged, it is plain."""
    keys, theirs = QUANTIZED[form]
    trained = train(tmp_path, "llama", **{**LORA, **keys})
    folder = export(tmp_path).folder
    quantized = AutoModelForCausalLM.from_pretrained(
        saved_model("llama"), dtype=torch.float32, quantization_config=BitsAndBytesConfig(**theirs)
    )
    for (
        layer
    ) in quantized.modules():  # bitsandbytes' packing for AVX512 in eval mode fails on rows shorter than a block
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    torch.testing.assert_close(
        logits_of(PeftModel.from_pretrained(quantized, folder)), trained.logits, rtol=1e-5, atol=1e-5
    )

    merged = AutoModelForCausalLM.from_pretrained(export(tmp_path, tmp_path / "merged", merge=True).folder)
    plain = AutoModelForCausalLM.from_pretrained(saved_model("llama"))
    on_plain = PeftModel.from_pretrained(plain, folder)
    torch.testing.assert_close(logits_of(merged), logits_of(on_plain), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits_of(merged), trained.logits, rtol=1e-2, atol=1e-2), "nothing was quantized"


@pytest.mark.parametrize("form", QUANTIZED)
def test_an_adapter_over_quantized_experts(tmp_path, form):
    """It changes the base model's own experts as much, and training went on from those that the bits could hold."""
    experts = {"quantize_moe_experts": True, "lora_target_parameters": ["mlp.experts.down_proj"]}
    trained = train(tmp_path, "qwen3-moe", **{**LORA, **QUANTIZED[form][0], **experts})
    said: list[str] = []
    folder = exporting.export(tmp_path, compare_logits=True, report=said.append).folder
    assert any("both with whole experts" in line for line in said)
    plain = AutoModelForCausalLM.from_pretrained(saved_model("qwen3-moe"))
    on_plain = PeftModel.from_pretrained(plain, folder)
    done = exporting.export(tmp_path, tmp_path / "merged", merge=True, compare_logits=True)
    merged = AutoModelForCausalLM.from_pretrained(done.folder)
    torch.testing.assert_close(logits_of(merged), logits_of(on_plain), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits_of(merged), trained.logits, rtol=1e-2, atol=1e-2), "nothing was quantized"


@pytest.mark.parametrize("form", QUANTIZED)
def test_a_base_that_is_stored_quantized_is_merged_as_it_is(tmp_path, form):
    config = BitsAndBytesConfig(**QUANTIZED[form][1])
    base = AutoModelForCausalLM.from_pretrained(saved_model("llama"), dtype=torch.float32, quantization_config=config)
    base.save_pretrained(tmp_path / "base")
    trained = train(tmp_path / "run", "llama", **{**LORA, **QUANTIZED[form][0], "base_model": str(tmp_path / "base")})
    trained.model.hf_model.train()  # for evaluation bitsandbytes also cuts the inputs to 8 bits
    folder = export(tmp_path / "run", merge=True).folder
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    merged = logits_of(AutoModelForCausalLM.from_pretrained(folder))
    torch.testing.assert_close(merged, trained.model.logits(BATCH), rtol=1e-4, atol=1e-4)


CONFIG_CHANGES: dict[str, dict[str, Any]] = {
    "overrides": {"overrides_of_model_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}},
    "overrides and added tokens": {
        "overrides_of_model_config": {"rms_norm_eps": 0.5},
        "lora_modules_to_save": ["embed_tokens", "lm_head"],
        "tokenizer": range(VOCABULARY + 3),
    },
}


@pytest.mark.parametrize("name", CONFIG_CHANGES)
def test_a_model_is_merged_with_the_config_it_was_trained_with(tmp_path, name):
    changes = {key: value for key, value in CONFIG_CHANGES[name].items() if key != "overrides_of_model_config"}
    without = train(tmp_path / "without", "llama", **LORA, **changes)
    trained = train(tmp_path / "run", "llama", **LORA, **CONFIG_CHANGES[name])
    assert not torch.allclose(trained.logits, without.logits, atol=1e-2), "the override changes nothing"
    loaded = AutoModelForCausalLM.from_pretrained(export(tmp_path / "run", merge=True).folder)
    torch.testing.assert_close(logits_of(loaded), trained.logits, rtol=1e-4, atol=1e-4)


def test_a_model_is_merged_with_the_config_of_another_folder(tmp_path):
    config = AutoConfig.from_pretrained(saved_model("llama"), rms_norm_eps=0.5)
    config.save_pretrained(tmp_path / "config")
    trained = train(tmp_path / "run", "llama", **LORA, base_model_config=str(tmp_path / "config"))
    loaded = AutoModelForCausalLM.from_pretrained(export(tmp_path / "run", merge=True).folder)
    torch.testing.assert_close(logits_of(loaded), trained.logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_a_changed_config_says_so(tmp_path):
    train(tmp_path, "llama", **LORA, overrides_of_model_config={"rms_norm_eps": 0.5})
    said: list[str] = []
    export(tmp_path, report=said.append)
    assert any("trained with overrides_of_model_config" in line and "--merge" in line for line in said)


def test_merged_embeddings_that_parted_are_declared_untied(tmp_path):
    """transformers would find out from the files; other readers believe config.json."""
    train(tmp_path, *ADAPTERS["tied embeddings"][:1], **ADAPTERS["tied embeddings"][1])
    out = export(tmp_path, merge=True).folder
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_an_exported_adapter_can_be_trained_on(tmp_path):
    trained = train(tmp_path, "llama", **ADAPTERS["dora"][1])
    folder = export(tmp_path).folder
    keys = {**ADAPTERS["dora"][1], "lora_model_dir": str(folder)}
    again = build_model(config_for(saved_model("llama"), **keys), one_process())
    again.hf_model.eval()
    torch.testing.assert_close(again.logits(BATCH), trained.logits, rtol=1e-6, atol=1e-6)


def test_newest_sound_checkpoint_is_taken(tmp_path):
    first = train(tmp_path, "llama", step=7)
    train(tmp_path, "llama", step=9, seed=6)
    assert export(tmp_path, tmp_path / "a").step == 9
    assert export(tmp_path, tmp_path / "b", step=7).step == 7
    assert export(tmp_path / "checkpoints" / "step-00000007", tmp_path / "c").step == 7
    damaged = next((tmp_path / "checkpoints" / "step-00000009").glob("*.distcp"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    said: list[str] = []
    done = export(tmp_path, tmp_path / "d", report=said.append)
    assert done.step == 7 and any("step-00000009 is damaged" in line for line in said)
    loaded = AutoModelForCausalLM.from_pretrained(done.folder)
    torch.testing.assert_close(logits_of(loaded), first.logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="damaged"):
        export(tmp_path, tmp_path / "e", step=9)
    assert not (tmp_path / "e").exists()


def test_a_checkpoint_just_committed_is_not_read_twice(tmp_path):
    train(tmp_path, "llama")
    untouched = tmp_path / "checkpoints" / "step-00000007" / "hf" / "tokenizer.json"
    untouched.write_text("{ }")
    assert export(tmp_path, tmp_path / "a", verified=True).step == 7
    with pytest.raises(CheckpointError, match=r"every complete checkpoint in .* is damaged"):
        export(tmp_path, tmp_path / "b")


def test_refused(tmp_path):
    with pytest.raises(UsageError, match="no complete checkpoint"):
        export(tmp_path, tmp_path / "out")
    train(tmp_path / "run", "llama")
    with pytest.raises(UsageError, match=r"of step 8; complete ones: 7"):
        export(tmp_path / "run", tmp_path / "out", step=8)
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").touch()
    with pytest.raises(UsageError, match="not empty"):
        export(tmp_path / "run", full)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run"]  # nothing half-written is left
