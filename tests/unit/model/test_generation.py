"""Whatever the base model's generation_config.json holds, one that transformers writes and reads comes of it."""

import json

import pytest
import torch
from transformers import GenerationConfig

from allranks.model.generation import generation_config
from tests.tiny_models import make_model

CASES = {
    "sampling without do_sample": ({"temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9}),
    "no sampling at temperature 0": ({"temperature": 0.0, "top_k": 7}, {"do_sample": None}),
    "asked not to sample": ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {"do_sample": False}),
    "a value out of range": ({"max_new_tokens": -1, "do_sample": True}, {"do_sample": True, "max_new_tokens": None}),
    "beams' values without beams": ({"length_penalty": 0.5, "use_cache": False}, {"use_cache": False}),
    "a word that is not known": ({"cache_implementation": "nope", "top_k": 5}, {"cache_implementation": None}),
    "a token's text": ({"eos_token_id": "</s>", "max_length": 50}, {"max_length": 50}),
    "a negative token": ({"pad_token_id": -1}, {}),
    "a token that the model lacks": ({"pad_token_id": 97, "eos_token_id": [2, 5, 5, 970]}, {"eos_token_id": [2, 5]}),
    "sampling at temperature 0": ({"do_sample": True, "temperature": 0, "top_p": 0.9}, {"do_sample": False}),
    "a number that is none": ('{"do_sample": true, "temperature": NaN, "top_p": Infinity}', {"do_sample": True}),
    "a number as text": ({"do_sample": True, "temperature": "0.7", "top_k": 4.5}, {"do_sample": True}),
    "more than all": ({"do_sample": True, "top_p": 1.5, "repetition_penalty": 0}, {"do_sample": True}),
    "nested without end": ('{"a":' * 100_000, {}),
    "no object": ([1, 2], {}),
    "no JSON": ("{bad", {}),
    "valid": ({"do_sample": True, "top_k": 3, "eos_token_id": [2, 9]}, {"top_k": 3, "eos_token_id": [2, 9]}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_valid_file_comes_of_it(tmp_path, case):
    stored, expected = CASES[case]
    text = stored if isinstance(stored, str) else json.dumps(stored)
    (tmp_path / "generation_config.json").write_text(text)
    model = make_model("llama")
    made, changes = generation_config(tmp_path, model.config, stops=[2], pad=0)
    made.save_pretrained(tmp_path / "out")
    read = GenerationConfig.from_pretrained(tmp_path / "out")
    read.validate(strict=True)
    wanted = {"eos_token_id": 2, "pad_token_id": 0, **expected}
    assert {key: getattr(read, key) for key in wanted} == wanted
    assert bool(changes) == (case != "valid")
    model.generate(torch.tensor([[3, 4]]), generation_config=read, max_new_tokens=1)
    assert all(str(tmp_path / "generation_config.json") in line for line in changes)


def test_ends_of_the_base_are_kept_behind_those_of_the_training(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    made, changes = generation_config(tmp_path, make_model("llama").config, stops=[7, 2])
    assert made.eos_token_id == [7, 2, 5] and changes == []


def test_without_a_file_the_models_config_tells(tmp_path):
    made, changes = generation_config(tmp_path, make_model("llama").config, stops=[2], pad=0)
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id, changes) == (1, 2, 0, [])
