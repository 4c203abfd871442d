"""What a run will write at least, by its config and the headers of its model's files."""

import json
from dataclasses import replace

import numpy
import pytest
from safetensors.numpy import save_file

from allranks.config import load_config
from allranks.launch.preflight.sizes import Sizes, sizes
from allranks.plan.stored_size import num_stored_elements


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for part, shape in (("a", (10, 60)), ("b", (400,))):
        save_file({part: numpy.zeros(shape, numpy.float16)}, folder / f"{part}.safetensors", {"format": "pt"})
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def config(tmp_path, model, **keys):
    path = tmp_path / "c.yaml"
    lines = {
        "base_model": str(model),
        "learning_rate": 1e-4,
        "datasets": [{"path": "d.jsonl", "type": "alpaca"}],
        **keys,
    }
    path.write_text(json.dumps(lines))
    return load_config(path)


@pytest.mark.parametrize(
    ("keys", "checkpoint_bytes", "load_bytes"),
    [
        ({}, 1000 * (4 + 8), 2000),
        ({"bf16": "full"}, 1000 * (2 + 4), 1000),
        ({"save_only_model": True}, 4000, 2000),
        ({"optimizer": "sgd"}, 4000, 2000),
        ({"save_strategy": "no"}, None, 2000),
        # Which layers an adapter gets is told by config.json, which is not there.
        ({"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}, None, None),
        ({"unfrozen_parameters": ["a"]}, None, None),
    ],
)
def test_a_checkpoint_has_weights_and_the_optimizers_state(tmp_path, model, keys, checkpoint_bytes, load_bytes):
    cfg = config(tmp_path, model, **keys)
    on_cpu = sizes(cfg, num_nodes=2, num_processes=4, on_cpu=True)
    assert replace(on_cpu, steps=()) == Sizes(checkpoint_bytes, 18, load_bytes)
    on_gpus = sizes(cfg, num_nodes=2, num_processes=None, on_cpu=False)
    assert replace(on_gpus, steps=()) == Sizes(checkpoint_bytes, None, None)


def test_a_model_of_the_hub_is_not_known_before_it_is_there(tmp_path):
    cfg = config(tmp_path, "org/model")
    assert sizes(cfg, num_nodes=2, num_processes=4, on_cpu=True) == Sizes(None, 18, None)


def test_numbers_are_counted_by_the_headers(model):
    assert num_stored_elements(model) == 1000


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "b.safetensors").unlink(),
        lambda folder: (folder / "b.safetensors").write_bytes(b"\xff" * 64),
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
        lambda folder: (folder / "model.safetensors.index.json").write_text("[]"),
        lambda folder: save_file({"b": numpy.zeros(9, numpy.uint8)}, folder / "b.safetensors"),
    ],
)
def test_what_cannot_be_counted_is_not_known(model, spoil):
    spoil(model)
    assert num_stored_elements(model) is None
