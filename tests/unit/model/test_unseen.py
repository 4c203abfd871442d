"""An adapter's user is told of tokens that the base model has never seen, with the key that trains them."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from allranks.model.build import build_model
from allranks.model.unseen import unseen_tokens
from tests.tiny_models import config_for, one_process, saved_model

USED = {"<|im_start|>": 5, "<|im_end|>": 6, "<tool>": 7}


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(saved_model("llama"), tmp_path / "model"))


def told(folder, used=USED, new=(), **keys):
    cfg = config_for(folder, **{"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, **keys})
    return unseen_tokens(cfg, build_model(cfg, one_process()).hf_model, used, list(new))


def change_rows(folder, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors["model.embed_tokens.weight"])
    save_file(tensors, file, metadata={"format": "pt"})


def shrink(rows):
    rows[5] *= 1e-4
    rows[6] = 0


def make_equal(rows):
    rows[5] = rows[6] = rows.mean(0)


@pytest.mark.parametrize("change", [shrink, make_equal])
def test_rows_that_carry_nothing_are_named_with_the_key_to_set(folder, change):
    assert told(folder) is None
    change_rows(folder, change)
    said = told(folder)
    assert "never seen: <|im_start|>, <|im_end|>." in said and "<tool>" not in said
    assert "set lora_modules_to_save: [embed_tokens, lm_head]" in said
    assert told(folder, used={"<tool>": 7}) is None


def test_tokens_that_the_config_adds_are_unseen_whatever_their_rows_hold(folder):
    assert "never seen: <tool>." in told(folder, new=["<tool>"])


def test_nothing_is_said_where_the_embedding_is_trained(folder):
    change_rows(folder, shrink)
    assert told(folder, lora_modules_to_save=["embed_tokens", "lm_head"]) is None
    assert told(folder, lora_target_linear=False, lora_target_modules=["embed_tokens", "q_proj"]) is None


def test_tokens_beyond_the_stored_rows_are_not_looked_for(folder):
    assert told(folder, used={"<new>": 10_000}) is None
