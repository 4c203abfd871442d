"""A wrong layer class, or an entry that the model's config does not have, is refused before the nodes meet, from
transformers' source, without importing it."""

import json
import subprocess
import sys

import pytest
import yaml

from allranks.config import load_config
from allranks.errors import ConfigError
from allranks.model.files import config_json
from allranks.model.known_names import refuse_unknown_overrides, refuse_wrong_layer_class
from allranks.plan.families import FAMILIES

KEY = "fsdp_config.transformer_layer_cls_to_wrap"


@pytest.fixture
def load(tmp_path):
    def config(name, **model):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": ["QwenForCausalLM"], **model}))
        keys = {"base_model": str(tmp_path), "datasets": [{"path": "d.jsonl", "type": "chat_template"}]}
        keys |= {"fsdp_version": 2, "fsdp_config": {"transformer_layer_cls_to_wrap": name}, "learning_rate": 1e-4}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(keys))
        return load_config(tmp_path / "c.yaml")

    return config


@pytest.mark.parametrize(
    ("model_type", "right"),
    [
        ("llama", "LlamaDecoderLayer"),
        ("qwen2", "Qwen2DecoderLayer"),
        ("mixtral", "MixtralDecoderLayer"),
        ("falcon", "FalconDecoderLayer"),
    ],
)
def test_the_right_class_is_taken_and_a_wrong_one_refused_with_the_right(load, model_type, right):
    refuse_wrong_layer_class(load(right, model_type=model_type))
    with pytest.raises(ConfigError, match=rf"{KEY}: QwenForCausalLM has no WrongLayer; the right value is {right}"):
        refuse_wrong_layer_class(load(f"{right}, WrongLayer", model_type=model_type))


@pytest.mark.parametrize(
    "model",
    [{}, {"model_type": "no-such-model"}, {"model_type": "../../etc"}, {"model_type": "llama", "auto_map": {"A": "b"}}],
)
def test_what_cannot_be_known_here_is_left_to_the_ranks(load, model):
    refuse_wrong_layer_class(load("WrongLayer", **model))


def test_nothing_heavy_is_imported_for_it():
    code = "import sys, allranks.model.known_names; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def refused(cfg):
    refuse_unknown_overrides(cfg, config_json(cfg))


@pytest.fixture
def overriding(tmp_path):
    def config(overrides, **model):
        (tmp_path / "config.json").write_text(json.dumps(model))
        keys = {"base_model": str(tmp_path), "datasets": [{"path": "d.jsonl", "type": "chat_template"}]}
        keys |= {"learning_rate": 1e-4, "overrides_of_model_config": overrides}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(keys))
        return load_config(tmp_path / "c.yaml")

    return config


@pytest.mark.parametrize("model_type", [*sorted(set(FAMILIES) - {"qwen"}), "gpt2", "falcon"])
def test_an_entry_that_no_config_of_the_model_has_is_refused_and_every_one_that_it_has_is_taken(overriding, model_type):
    from transformers import CONFIG_MAPPING

    known = CONFIG_MAPPING[model_type]()
    entries = {name: None for name in dir(known) if not name.startswith("_") and hasattr(known, name)}
    assert "vocab_size" in entries
    refused(overriding(entries, model_type=model_type))
    with pytest.raises(ConfigError, match=rf"overrides_of_model_config: the config of {model_type} has no hiden_size;"):
        refused(overriding({"vocab_size": 64, "hiden_size": 64}, model_type=model_type))


def test_an_entry_that_only_the_stored_config_has_is_taken(overriding):
    refused(overriding({"its_own": 2}, model_type="llama", its_own=1))
    refused(overriding({"its_own": 2}, model_type="llama", auto_map={"A": "b"}))
    refused(overriding({"its_own": 2}))  # of a model that nobody knows
