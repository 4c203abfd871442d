"""What nodes compare of a model's files: any other model, tokenizer or adapter differs, and large ones stay quick."""

import random

import pytest
import torch
from safetensors.torch import save_file

from allranks import digests
from allranks.config.load import resolve_mapping
from allranks.model import files
from allranks.model.files import model_files, sampled_sha256


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)  # the files of these tests have just been made
    return tmp_path / "cache" / "allranks" / "sha256"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("[1]")
    (folder / "README.md").write_text("not compared")
    generator = torch.Generator().manual_seed(1)
    save_file({f"t{i}": torch.randn(300, 700, generator=generator) for i in range(3)}, folder / "model.safetensors")
    return folder


def config(model, **keys):
    data = [{"path": "d.jsonl", "type": "alpaca"}]
    return resolve_mapping({"base_model": str(model), "datasets": data, "learning_rate": 1e-3, **keys})


def test_every_file_that_decides_is_named_with_its_size_and_digest(model):
    found = model_files(config(model))
    assert list(found) == [f"base_model: {name}" for name in ("config.json", "model.safetensors", "tokenizer.json")]
    assert found["base_model: config.json"] == "2 bytes, sha256 44136fa355b3678a"


def test_adapter_and_tokenizer_of_their_own_folders_are_covered_too(model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    keys = {"adapter": "lora", "lora_model_dir": str(adapter), "tokenizer_config": str(model)}
    found = model_files(config(model, **keys))
    assert "lora_model_dir: adapter_config.json" in found and "tokenizer_config: tokenizer.json" in found


def test_one_flipped_bit_anywhere_shows(model):
    """Small models are read whole, whatever the size of their files; the cache never hides a change."""
    weights = model / "model.safetensors"
    generator = random.Random(3)
    seen = {model_files(config(model))["base_model: model.safetensors"]}
    for _ in range(8):
        content = bytearray(weights.read_bytes())
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        weights.write_bytes(content)
        described = model_files(config(model))["base_model: model.safetensors"]
        assert described not in seen
        seen.add(described)


def test_what_was_read_once_is_not_read_again(model, cache, monkeypatch):
    first = model_files(config(model))
    assert len([entry for entry in cache.iterdir() if not entry.name.startswith("lock")]) == 1
    read = []
    whole = digests._read
    monkeypatch.setattr(digests, "_read", lambda file: read.append(file.name) or whole(file))
    assert model_files(config(model)) == first
    assert read == ["config.json", "tokenizer.json"]


def test_a_home_that_cannot_be_written_is_no_reason_to_fail(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "sha256" in model_files(config(model))["base_model: model.safetensors"]


@pytest.mark.parametrize("tensor", ["t0", "t1", "t2"])
def test_of_large_weights_every_tensor_is_sampled(model, tensor, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_BYTES", 1000)
    before = model_files(config(model))["base_model: model.safetensors"]
    assert "sha256 of samples" in before
    from safetensors.torch import load_file

    tensors = load_file(model / "model.safetensors")
    tensors[tensor] = tensors[tensor] * 1.0001
    save_file(tensors, model / "model.safetensors")
    assert model_files(config(model))["base_model: model.safetensors"] != before


def test_a_bit_between_the_samples_shows_where_every_byte_is_asked_for(model, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_BYTES", 1000)
    weights, name = model / "model.safetensors", "base_model: model.safetensors"
    before = model_files(config(model))[name], model_files(config(model), every_byte=True)[name]
    content = bytearray(weights.read_bytes())
    content[-(300 * 700 * 4) // 4] ^= 1  # of the last tensor, a quarter before its end
    weights.write_bytes(content)
    assert model_files(config(model))[name] == before[0]
    assert model_files(config(model), every_byte=True)[name] != before[1]


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 5000, (9).to_bytes(8, "little") + b'{"a": 1} ' + b"0" * 50]
)
def test_what_is_no_safetensors_file_is_sampled_all_the_same(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    one = sampled_sha256(path)
    path.write_bytes(content[:-1] + b"x")
    assert sampled_sha256(path) != one


def test_a_name_of_the_hub_counts_once_it_is_in_the_cache(model, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cfg = config("someone/model")
    assert model_files(cfg, from_hub=True) == {} == model_files(cfg)
    repository = tmp_path / "hub" / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots").mkdir()
    model.rename(repository / "snapshots" / "abc123")
    assert model_files(cfg) == {}
    assert "base_model: model.safetensors" in model_files(cfg, from_hub=True)
