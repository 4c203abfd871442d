"""Every kind of export is compared with what was trained, tensors and logits; one that differs is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from allranks.errors import CheckpointError
from allranks.export import forward
from allranks.export.export import export
from tests.tiny_models import VOCABULARY, saved_model
from tests.tiny_runs import LORA, train

ENDS = {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]}
ON_EMBEDDING = {**LORA, "lora_target_linear": False, "lora_target_modules": ["embed_tokens"]}

# Architecture, keys of the run, options of the export.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "model": ("llama-tied", {}, {}),
    "experts": ("mixtral", {}, {"dtype": "bfloat16"}),
    "capped": ("gemma2", {"bf16": True}, {}),
    "zero": ("llama", {"deepspeed": {"zero_optimization": {"stage": 2}}, "bf16": True}, {}),
    "adapter": ("llama", LORA, {}),
    "sdpa": ("llama", {**LORA, "attn_implementation": "sdpa"}, {}),
    "adapter of zero": ("llama", {**LORA, "deepspeed": {"zero_optimization": {"stage": 2}}, "bf16": True}, {}),
    "modules to save": ("llama-tied", ENDS, {}),
    "new tokens": ("llama", {**ENDS, "tokenizer": range(VOCABULARY + 3)}, {}),
    "overrides": ("llama", {**LORA, "overrides_of_model_config": {"rms_norm_eps": 0.5}}, {}),
    "quantized": ("llama", {**LORA, "adapter": "qlora", "bf16": True}, {}),
    "merged": ("qwen3", {**LORA, "peft_use_dora": True}, {"merge": True}),
    "merged in 16 bits": ("llama", {**LORA, "bf16": True}, {"merge": True}),
    "merged, tied": ("llama-tied", ON_EMBEDDING, {"merge": True}),
    "merged new tokens": ("llama-tied", {**ENDS, "tokenizer": range(VOCABULARY + 3)}, {"merge": True}),
    "merged, unquantized": ("llama", {**LORA, "load_in_8bit": True}, {"merge": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_compared(tmp_path, kind):
    architecture, keys, options = KINDS[kind]
    train(tmp_path, architecture, **keys)
    said: list[str] = []
    export(tmp_path, report=said.append, **options)
    assert len([line for line in said if line.startswith("compared with the trained model: all ")]) == 1
    [line] = [line for line in said if "logits" in line]
    assert line.startswith("logits compared with the trained model's, in float32: those of 64 tokens are off by")
    assert ("rounding each weight to bfloat16" in line) == (kind == "merged in 16 bits")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_merge_into_a_base_that_is_stored_quantized_is_compared(tmp_path, monkeypatch, bits):
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    base = AutoModelForCausalLM.from_pretrained(saved_model("llama"), dtype=torch.float32, quantization_config=config)
    base.save_pretrained(tmp_path / "base")
    train(tmp_path / "run", "llama", **LORA, base_model=str(tmp_path / "base"))
    said: list[str] = []
    export(tmp_path / "run", tmp_path / "out", merge=True, report=said.append)
    assert any(line.startswith("compared with the trained model: all ") for line in said)
    assert any(line.startswith("logits compared") for line in said)
    monkeypatch.setattr("allranks.export.merge.merge", lambda adapted, base: adapted.unload())
    with pytest.raises(CheckpointError, match=r"is not what was trained: .*proj.* differ"):
        export(tmp_path / "run", tmp_path / "second", merge=True)
    assert not (tmp_path / "second").exists()


def edit_tensors(folder: Path, change: Any) -> None:
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(folder: Path, name: str, **changes: Any) -> None:
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**found, **changes}))


def one_element(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3, 4].add_(1e-3))


def other_dtype(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({name: each.half() for name, each in tensors.items()}))


def a_tie(folder: Path) -> None:
    edit_json(folder, "config.json", tie_word_embeddings=True)
    edit_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))


TENSORS = {
    "one element": (one_element, r"up_proj\.weight differ from what training computed with"),
    "another dtype": (other_dtype, r"embed_tokens\.weight, .* differ"),
    "the dtype that config.json tells": (
        lambda folder: edit_json(folder, "config.json", dtype="float16"),
        r"is in torch\.float32, and its config\.json says torch\.float16",
    ),
    "a tie": (a_tie, r"lm_head\.weight differ"),
}


@pytest.mark.parametrize("damage", TENSORS)
@pytest.mark.parametrize("merge", [True, False])
def test_tensors_that_differ_are_refused(tmp_path, monkeypatch, damage, merge):
    from allranks.export import full
    from allranks.export import merge as merging

    change, told = TENSORS[damage]
    train(tmp_path / "run", "llama", **(LORA if merge else {}))
    module: Any = merging if merge else full
    write = module.write_configs

    def write_and_damage(checkpoint, model, folder, dtype):
        write(checkpoint, model, folder, dtype)
        change(folder)

    monkeypatch.setattr(module, "write_configs", write_and_damage)
    with pytest.raises(CheckpointError, match=told):
        export(tmp_path / "run", tmp_path / "out", merge=merge)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def missing_key(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(next(iter(tensors))))


# Files that say something else of the same tensors.
AROUND: dict[str, tuple[Any, dict[str, Any], bool, str]] = {
    "norms": (lambda folder: edit_json(folder, "config.json", rms_norm_eps=0.1), {}, False, "off by up to"),
    "positions": (
        lambda folder: edit_json(folder, "config.json", rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
        {},
        False,
        "at 6. of 64 positions, from position [0-4] on; most at position",
    ),
    "merged norms": (lambda folder: edit_json(folder, "config.json", rms_norm_eps=0.1), LORA, True, "off by up to"),
    "scale": (lambda folder: edit_json(folder, "adapter_config.json", lora_alpha=7), LORA, False, "off by up to"),
    "form": (lambda folder: edit_json(folder, "adapter_config.json", use_rslora=True), LORA, False, "off by up to"),
    "tensor": (missing_key, LORA, False, "loaded only in part, missing adapter keys: "),
    "weight": (missing_key, {}, False, "loaded only in part, missing keys: "),
    "sense": (lambda folder: edit_json(folder, "config.json", model_type="no-such"), {}, False, "cannot be loaded: "),
}


@pytest.mark.parametrize("damage", AROUND)
def test_an_export_that_computes_something_else_is_refused(tmp_path, monkeypatch, damage):
    change, keys, merge, told = AROUND[damage]
    train(tmp_path / "run", "llama", **keys)
    compare = forward.compare_logits

    def damage_and_compare(checkpoint, folder, **options):
        change(folder)
        compare(checkpoint, folder, **options)

    monkeypatch.setattr(forward, "compare_logits", damage_and_compare)
    with pytest.raises(CheckpointError, match=told):
        export(tmp_path / "run", tmp_path / "out", merge=merge)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_large_model_is_compared_where_that_is_asked_for(tmp_path, monkeypatch):
    train(tmp_path / "run", "llama")
    monkeypatch.setattr(forward, "SMALL_PARAMETERS", 1000)
    for number, (asked, told) in enumerate([(None, "--compare-logits does it"), (True, "are off by"), (False, "")]):
        said: list[str] = []
        export(tmp_path / "run", tmp_path / str(number), compare_logits=asked, report=said.append)
        lines = [line for line in said if "logits" in line]
        assert len(lines) == (asked is not False)
        assert all(told in line for line in lines)


def test_an_adapter_whose_base_is_elsewhere(tmp_path):
    saved = AutoModelForCausalLM.from_pretrained(saved_model("llama"))
    saved.save_pretrained(tmp_path / "base")
    train(tmp_path / "run", "llama", **LORA, base_model=str(tmp_path / "base"))
    (tmp_path / "base").rename(tmp_path / "moved")
    said: list[str] = []
    export(tmp_path / "run", tmp_path / "a", report=said.append)
    assert any("its base model" in line and "is not on this machine" in line for line in said)
    export(tmp_path / "run", tmp_path / "b", base_model=str(tmp_path / "moved"), report=said.append)
    assert said[-1].startswith("logits compared")


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_that_went_on_from_one_that_is_gone(tmp_path, merge):
    train(tmp_path / "first", "llama", **LORA)
    folder = export(tmp_path / "first", tmp_path / "adapter", compare_logits=False).folder
    train(tmp_path / "run", "llama", adapter="lora", lora_model_dir=str(folder))
    folder.rename(tmp_path / "gone")
    said: list[str] = []
    export(tmp_path / "run", tmp_path / "out", merge=merge, report=said.append)
    assert said[-1].startswith("logits compared")
