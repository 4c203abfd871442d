"""An adapter that training would refuse is refused before the nodes meet, and no other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM

from allranks.errors import ConfigError
from allranks.launch.preflight.refusals import Refusals, refused_here
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.model.adapter import add_adapter
from allranks.model.peft_names import names_as_they_are
from allranks.plan import usual_targets as module
from allranks.plan.adapter_names import refuse_unknown_adapter
from allranks.plan.families import FAMILIES
from allranks.plan.usual_targets import usual_targets
from tests.tiny_models import ARCHITECTURES, config_for, saved_model

NAMES: tuple[dict[str, Any], ...] = (
    {},
    {"lora_target_linear": True},
    {"lora_target_modules": "all-linear"},
    {"lora_target_modules": ["o_proj"]},
    {"lora_target_modules": ["self_attn.o_proj", "lm_head"]},
    {"lora_target_modules": ["o_proj", "oproj"]},
    {"lora_target_modules": ["model.layers.1.self_attn.o_proj"]},
    {"lora_target_modules": ["model.layers.7.self_attn.o_proj"]},
    {"lora_target_modules": r".*\.o_proj"},
    {"lora_target_modules": r".*\.oproj"},
    {"lora_target_linear": True, "lora_modules_to_save": ["embed_tokens", "lm_head"]},
    {"lora_target_linear": True, "lora_modules_to_save": ["embed"]},
    {"lora_target_linear": True, "peft_layers_to_transform": [1]},
    {"lora_target_linear": True, "peft_layers_to_transform": [9]},
    {"lora_target_parameters": ["experts.w7"]},
)


def _refuses(check: Any, *of: Any) -> bool:
    try:
        check(*of)
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("keys", NAMES, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_training_refuses_of_names_is_refused_before_it(name: str, keys: dict[str, Any]) -> None:
    folder = saved_model(name)
    read = json.loads((folder / "config.json").read_text())
    cfg = config_for(folder, adapter="lora", lora_r=4, lora_alpha=4, **keys)
    wrong, said = _refuses(add_adapter, _on_meta(folder), cfg), _refuses(refuse_unknown_adapter, cfg, read)
    if read["model_type"] in FAMILIES or not keys:
        assert said == wrong
    else:
        assert wrong or not said, "of a family that is not known nothing is said of names"


WRONG: tuple[dict[str, Any], ...] = (
    {"lora_target_modules": ["qproj", "kproj"]},
    {"lora_target_linear": True, "lora_modules_to_save": ["head"]},
    {"lora_target_parameters": ["experts.w7"]},
)


@pytest.mark.parametrize("keys", WRONG, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_names_that_there_are_are_told_alike_before_training_and_in_it(name: str, keys: dict[str, Any]) -> None:
    folder = saved_model(name)
    read = json.loads((folder / "config.json").read_text())
    cfg = config_for(folder, adapter="lora", lora_r=4, lora_alpha=4, **keys)
    model = _on_meta(folder)
    with pytest.raises(ConfigError) as of_ranks:
        add_adapter(model, cfg)
    if read["model_type"] in FAMILIES:
        with pytest.raises(ConfigError) as before:
            refuse_unknown_adapter(cfg, read)
        assert _told(before.value) == _told(of_ranks.value)
        assert str(before.value).startswith(f"{[*keys][-1]}: the model has no ")
    if keys is WRONG[0]:
        with names_as_they_are():
            of_peft = inject_adapter_in_model(LoraConfig(target_modules="all-linear"), _on_meta(folder))
        adapted = {part.rpartition(".")[2] for part, one in of_peft.named_modules() if isinstance(one, LoraLayer)}
        assert _told(of_ranks.value)[0] == adapted


def _told(error: ConfigError) -> tuple[set[str], str]:
    """The names that it lists, in whatever order, and what it says after them."""
    listed, _, rest = str(error).partition("; it has ")[2].partition(";")
    return set(listed.split(", ")), rest


def _on_meta(folder: Path) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def test_usual_targets_are_pefts_and_of_a_model_without_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as OF_PEFT

    assert "llama" in OF_PEFT and "deepseek_v3" not in OF_PEFT
    for model_type, targets in OF_PEFT.items():
        assert usual_targets(model_type) == targets
    assert usual_targets("deepseek_v3") == []
    monkeypatch.setattr(module, "_table", dict)
    assert usual_targets("deepseek_v3") == ["q_proj", "v_proj"], "where PEFT keeps it elsewhere"


def test_a_check_says_it_of_its_node() -> None:
    cfg = config_for(saved_model("llama"), adapter="lora", lora_r=4, lora_alpha=4, lora_target_modules=["qproj"])
    refusals = Refusals()
    refused_here(cfg, resolve(LaunchOptions(), num_gpus=0), refusals)
    assert [text for text in refusals.texts if "lora_target_modules: the model has no module qproj" in text]


def test_the_names_are_those_of_the_model_as_it_is_overridden() -> None:
    """A third layer, which config.json alone does not have."""
    keys = {"adapter": "lora", "lora_r": 4, "lora_alpha": 4, "lora_target_modules": ["layers.2.self_attn.q_proj"]}
    for overrides, is_refused in (({}, True), ({"num_hidden_layers": 3}, False)):
        cfg = config_for(saved_model("llama"), **keys, overrides_of_model_config=overrides)
        refusals = Refusals()
        refused_here(cfg, resolve(LaunchOptions(), num_gpus=0), refusals)
        assert any("lora_target_modules" in text for text in refusals.texts) is is_refused


@pytest.mark.parametrize("config", [{}, {"model_type": "cohere"}, {"model_type": "llama"}], ids=str)
def test_a_folder_without_an_adapter_is_refused_whatever_the_model_is(tmp_path: Path, config: dict[str, Any]) -> None:
    cfg = config_for(saved_model("llama"), adapter="lora", lora_model_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"lora_model_dir: .* holds no adapter_config\.json"):
        refuse_unknown_adapter(cfg, config)


def test_of_a_model_that_is_not_here_or_brings_its_own_code_nothing_is_said() -> None:
    cfg = config_for(saved_model("llama"), adapter="lora", lora_r=4, lora_alpha=4, lora_target_modules=["qproj"])
    read = json.loads((saved_model("llama") / "config.json").read_text())
    for one in ({}, {"model_type": "llama"}, {**read, "auto_map": {"AutoConfig": "a.B"}}):
        refuse_unknown_adapter(cfg, one)
    with pytest.raises(ConfigError, match=r"qproj; it has .*q_proj"):
        refuse_unknown_adapter(cfg, read)
