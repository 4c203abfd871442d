"""Weights from safetensors into the model: equal to `from_pretrained`, nothing left out, nothing extra."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from allranks.errors import ConfigError
from allranks.model.build import build_model
from allranks.model.weights import find_weights, mean_row, read_rows, read_tensor
from tests.tiny_models import ARCHITECTURES, VOCABULARY, config_for, one_process, saved_model


def copy_changed(source: Path, to: Path, change) -> Path:
    """A copy of a model folder whose tensors went through `change(tensors) -> tensors`."""
    to.mkdir()
    (to / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(change(load_file(source / "model.safetensors")), to / "model.safetensors", metadata={"format": "pt"})
    return to


def assert_same_state(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    state = dict(theirs.named_parameters(remove_duplicate=False)) | dict(theirs.named_buffers())
    found = dict(ours.named_parameters(remove_duplicate=False)) | dict(ours.named_buffers())
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_and_buffers_equal_from_pretrained(name):
    """Buffers too: those of a model made on the meta device would be garbage (rotary frequencies)."""
    theirs = AutoModelForCausalLM.from_pretrained(saved_model(name))
    assert_same_state(build_model(config_for(saved_model(name)), one_process()).hf_model, theirs)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_bfloat16_equals_from_pretrained(name):
    theirs = AutoModelForCausalLM.from_pretrained(saved_model(name), dtype=torch.bfloat16)
    ours = build_model(config_for(saved_model(name), bf16="full"), one_process())
    assert_same_state(ours.hf_model, theirs)


def test_scaled_rotary_frequencies_are_computed(tmp_path):
    folder = copy_changed(saved_model("llama"), tmp_path / "scaled", lambda tensors: tensors)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    plain = build_model(config_for(saved_model("llama")), one_process()).hf_model
    scaled = build_model(config_for(folder), one_process()).hf_model
    assert_same_state(scaled, AutoModelForCausalLM.from_pretrained(folder))
    assert not torch.equal(scaled.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq)


def test_tied_weights_are_one_tensor():
    model = build_model(config_for(saved_model("llama-tied")), one_process()).hf_model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_tied_weights_may_be_stored_twice_but_not_differ(tmp_path):
    def twice(tensors):
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    def differing(tensors):
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}

    source = saved_model("llama-tied")
    build_model(config_for(copy_changed(source, tmp_path / "twice", twice)), one_process())
    with pytest.raises(ConfigError, match=r"ties .*lm_head\.weight.*different values"):
        build_model(config_for(copy_changed(source, tmp_path / "differing", differing)), one_process())


def test_the_other_name_of_a_tied_weight_will_do(tmp_path):
    def renamed(tensors):
        weight = tensors.pop("model.embed_tokens.weight")
        return {**tensors, "lm_head.weight": weight}

    folder = copy_changed(saved_model("llama-tied"), tmp_path / "renamed", renamed)
    model = build_model(config_for(folder), one_process()).hf_model
    want = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.model.embed_tokens.weight, want)


def test_index_of_several_files(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved_model("qwen3-moe"))
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_state(build_model(config_for(tmp_path), one_process()).hf_model, model)
    next(tmp_path.glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(ConfigError, match=r"00002.*missing"):
        build_model(config_for(tmp_path), one_process())


def test_checkpoint_of_the_body_alone_gets_its_prefix(tmp_path):
    def without_prefix(tensors):
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    folder = copy_changed(saved_model("llama-tied"), tmp_path / "body", without_prefix)
    theirs = AutoModelForCausalLM.from_pretrained(saved_model("llama-tied"))
    assert_same_state(build_model(config_for(folder), one_process()).hf_model, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "layers.1.mlp.up" not in k}, r"lacks model\.layers\.1\.mlp\.up_proj"),
        (lambda t: {**t, "model.extra.weight": torch.zeros(2)}, r"no place for model\.extra\.weight"),
        (lambda t: {**t, "model.norm.weight": torch.zeros(5)}, r"model\.norm\.weight \(stored \[5\], .* has \[32\]\)"),
        (lambda t: {k: v for k, v in t.items() if "lm_head" not in k}, r"lacks lm_head\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path, change, message):
    folder = copy_changed(saved_model("llama"), tmp_path / "model", change)
    with pytest.raises(ConfigError, match=message):
        build_model(config_for(folder), one_process())


def test_a_lacking_expert_is_found(tmp_path):
    def without_one(tensors):
        return {name: tensor for name, tensor in tensors.items() if not re.search(r"experts\.3\.w(1|3)", name)}

    folder = copy_changed(saved_model("mixtral"), tmp_path / "model", without_one)
    with pytest.raises(ConfigError, match=r"gate_up_proj"):
        build_model(config_for(folder), one_process())


def test_old_stored_rotary_frequencies_are_left_out(tmp_path):
    def old(tensors):
        return {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}

    build_model(config_for(copy_changed(saved_model("llama"), tmp_path / "old", old)), one_process())


def test_pickled_weights_name_the_way_to_convert(tmp_path):
    (tmp_path / "config.json").write_bytes((saved_model("llama") / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin.*save_pretrained"):
        build_model(config_for(tmp_path), one_process())


def test_a_cut_off_file_is_told(tmp_path):
    folder = copy_changed(saved_model("llama"), tmp_path / "cut", lambda tensors: tensors)
    whole = (folder / "model.safetensors").read_bytes()
    for size in (4, 100, len(whole) - 10):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"model\.safetensors"):
            build_model(config_for(folder), one_process())


def test_no_such_model():
    with pytest.raises(ConfigError, match=r"base_model: \./nowhere is not a folder"):
        build_model(config_for(Path("./nowhere"), base_model="./nowhere"), one_process())


def test_rows_are_read_alone_and_cast(tmp_path):
    weight = torch.randn(10, 3).to(torch.bfloat16)
    save_file({"w": weight, "scalar": torch.tensor(2.5)}, tmp_path / "model.safetensors")
    stored = find_weights(tmp_path)
    out = torch.empty(4, 3)
    read_rows(stored["w"], 5, out)
    assert torch.equal(out, weight[5:9].float())
    assert torch.equal(read_tensor(stored["w"]), weight)
    assert read_tensor(stored["scalar"]).item() == 2.5
    torch.testing.assert_close(mean_row(stored["w"]), weight.float().mean(0))


class Tokens:
    """As much of a tokenizer as counts: its length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


@pytest.mark.parametrize(("to_32", "rows"), [(False, VOCABULARY + 3), (True, 128)])
def test_added_tokens_start_as_the_mean_of_the_others(to_32, rows):
    cfg = config_for(saved_model("llama"), resize_token_embeddings_to_32x=to_32)
    model = build_model(cfg, one_process(), tokenizer=Tokens(VOCABULARY + 3))
    theirs = AutoModelForCausalLM.from_pretrained(saved_model("llama"))
    for ours, old in (
        (model.hf_model.model.embed_tokens.weight, theirs.model.embed_tokens.weight),
        (model.hf_model.lm_head.weight, theirs.lm_head.weight),
    ):
        assert ours.shape[0] == rows == model.config.vocab_size
        assert torch.equal(ours[:VOCABULARY], old)
        torch.testing.assert_close(ours[VOCABULARY:], old.mean(0).expand(rows - VOCABULARY, -1))


def test_added_tokens_under_an_adapter_must_be_trained():
    cfg = config_for(saved_model("llama"), adapter="lora", lora_r=2, lora_alpha=4, lora_target_linear=True)
    with pytest.raises(ConfigError, match="lora_modules_to_save"):
        build_model(cfg, one_process(), tokenizer=Tokens(VOCABULARY + 1))
