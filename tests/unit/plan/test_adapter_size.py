"""The size of an adapter's checkpoint, told by the model's files alone, is that of the one that is written."""

import copy
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from allranks.errors import ConfigError
from allranks.launch.preflight.sizes import sizes
from allranks.model.adapter import adapter_tensors, add_adapter
from allranks.model.build import build_model
from allranks.model.files import stored_config
from allranks.plan.adapter_size import num_adapter_elements
from allranks.plan.config_workload import Trained, own_workload
from allranks.plan.model_shape import shape_of
from allranks.train.saved_size import saved_bytes
from allranks.train.strategies import make_strategy
from tests.tiny_models import ARCHITECTURES, config_for, make_batch, one_process, saved_model
from tests.tiny_runs import LORA, train
from tests.unit.plan.test_model_shape import CASES, SMALL

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WITH_EMBEDDINGS = {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]}


def lora(**keys):
    return {"adapter": "lora", "lora_r": 3, "lora_alpha": 6, **keys}


def elements(folder, cfg):
    return num_adapter_elements(folder, cfg.adapter, stored_config(config_for(folder)))


def foretold(cfg):
    return sizes(cfg, num_nodes=2, num_processes=1, on_cpu=True).checkpoint_bytes


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *((name, LORA) for name in ARCHITECTURES),
        ("llama", WITH_EMBEDDINGS),
        ("llama", lora(lora_target_linear=True, lora_target_modules=["lm_head"])),
        ("llama", lora(lora_target_modules=["q_proj", "v_proj"], peft_layers_to_transform=[1])),
        ("llama", lora(lora_target_modules=["q_proj"], peft_layers_to_transform=[0], peft_layers_pattern=["layers"])),
        ("llama", lora(lora_target_modules=r".*\.1\.(mlp|self_attn)\.(q|up)_proj")),
        ("llama", lora(lora_target_modules=["embed_tokens"])),
        ("llama", lora(lora_target_linear=True, peft_use_dora=True)),
        ("gpt-oss", lora(lora_target_parameters=EXPERTS, lora_target_modules=["q_proj"])),
        ("qwen3-moe", lora(lora_target_parameters=EXPERTS, lora_target_modules=["q_proj"])),
        ("llama-tied", WITH_EMBEDDINGS),
        ("mixtral", lora(lora_target_linear=True, lora_target_parameters=["mlp.gate.weight"])),
    ],
    ids=str,
)
def test_it_counts_what_is_trained(name, keys):
    cfg = config_for(saved_model(name), **keys)
    trained = adapter_tensors(build_model(cfg, one_process()).hf_model)
    assert elements(saved_model(name), cfg) == sum(tensor.numel() for tensor in trained.values())


SPELLINGS = {
    "linear": {"lora_target_linear": True},
    "all-linear": {"lora_target_modules": "all-linear"},
    "and the output layer": {"lora_target_linear": True, "lora_target_modules": ["lm_head"]},
    "whole ends": {"lora_target_linear": True, "lora_modules_to_save": ["embed_tokens", "lm_head"]},
    "a pattern": {"lora_target_modules": r".*layers\.[01]\..*(o|gate|up|down)_proj"},
    "a pattern of one layer": {"lora_target_modules": r"model\.layers\.1\.self_attn\..*"},
    "experts": {
        "lora_target_modules": ["o_proj"],
        "lora_target_parameters": ["experts.gate_up_proj", "mlp.gate.weight"],
    },
}


@pytest.mark.parametrize(("kind", "keys"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_plan_counts_what_is_trained_of_every_family(tmp_path, kind, keys):
    described = {"model_type": kind, **SMALL, **keys}
    shape = shape_of(described)
    config = AutoConfig.for_model(kind, **{**SMALL, **keys, "pad_token_id": 0})
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    num_built = 0
    for spelling in SPELLINGS.values():
        cfg, model = config_for(tmp_path, **lora(**spelling)), copy.deepcopy(plain)
        try:
            add_adapter(model, cfg)
        except ConfigError:
            continue  # of a name that the model does not have, or a pair that PEFT has not; a run is refused
        num_built += 1
        trained = sum(tensor.numel() for tensor in adapter_tensors(model).values())
        assert Trained.of(cfg, described, shape).num_elements == trained, spelling
    assert num_built >= 4


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llama", lora(lora_modules_to_save=["lm_head"])),  # and the modules that PEFT chooses
    ],
    ids=str,
)
def test_it_counts_no_more_than_what_is_trained(name, keys):
    cfg = config_for(saved_model(name), **keys)
    trained = adapter_tensors(build_model(cfg, one_process()).hf_model)
    counted = elements(saved_model(name), cfg)
    assert 0 < counted <= sum(tensor.numel() for tensor in trained.values())


@pytest.mark.parametrize(
    "keys",
    [{}, {"optimizer": "sgd"}, {"optimizer": "muon"}, {"bf16": "full"}, {"save_only_model": True}, {"lora_r": 1}],
    ids=str,
)
def test_a_checkpoint_is_as_large_as_foretold(keys):
    cfg = config_for(saved_model("llama"), **{**WITH_EMBEDDINGS, **keys})
    model = build_model(cfg, one_process())
    strategy = make_strategy(cfg, model)
    strategy.backward(model.forward_loss(make_batch(1)))
    strategy.step()
    saved = saved_bytes(strategy.state.contents(only_model=cfg.checkpoint.save_only_model), 1)
    # Beside it are counters of steps, a number for each parameter; Muon keeps AdamW's state for embeddings.
    assert foretold(cfg) <= saved
    assert "muon" in keys.values() or foretold(cfg) == pytest.approx(saved, rel=0.01)


def test_its_files_are_as_large_as_foretold(tmp_path):
    trained = train(tmp_path / "run", "llama", **WITH_EMBEDDINGS)
    cfg = config_for(saved_model("llama"), **WITH_EMBEDDINGS, save_only_model=True)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.distcp"))
    num_tensors = len(adapter_tensors(trained.model.hf_model))
    assert foretold(cfg) <= written < foretold(cfg) + 4096 * num_tensors


def test_an_adapter_to_go_on_from_is_as_large_as_it_is(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(saved_model("llama"))
    config = LoraConfig(r=5, target_modules=["q_proj"], modules_to_save=["lm_head"])
    get_peft_model(base, config).save_pretrained(tmp_path)
    cfg = config_for(saved_model("llama"), adapter="lora", lora_model_dir=str(tmp_path))
    trained = adapter_tensors(build_model(cfg, one_process()).hf_model)
    assert elements(saved_model("llama"), cfg) == sum(one.numel() for one in trained.values())


def test_a_plan_counts_an_adapter_to_go_on_from_as_it_is(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(saved_model("llama"))
    config = LoraConfig(r=5, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    get_peft_model(base, config).save_pretrained(tmp_path)
    cfg = config_for(saved_model("llama"), adapter="lora", lora_model_dir=str(tmp_path))
    trained = adapter_tensors(build_model(cfg, one_process()).hf_model)
    model = json.loads((saved_model("llama") / "config.json").read_text())
    work = own_workload(cfg, model, num_nodes=1, gpus_per_node=1, on_cpu=True)
    assert (work.lora_rank, work.num_trained) == (5, sum(one.numel() for one in trained.values()))
    for broken in ("{", "[]", '{"r": "x"}', '{"r": 5, "target_modules": 3}'):
        (tmp_path / "adapter_config.json").write_text(broken)
        assert own_workload(cfg, model, num_nodes=1, gpus_per_node=1, on_cpu=True).lora_rank == 0


def test_the_weights_below_are_no_part_of_it():
    plain, quantized = (config_for(saved_model("llama"), **{**LORA, **keys}) for keys in ({}, {"adapter": "qlora"}))
    assert foretold(plain) == foretold(quantized)


@pytest.mark.parametrize(
    "config",
    [None, "[]", "{", json.dumps({"vision_config": {}, "vocab_size": 97})],
)
def test_what_is_not_sure_is_not_known(tmp_path, config):
    folder = tmp_path / "model"
    shutil.copytree(saved_model("llama"), folder)
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    cfg = config_for(folder, **LORA)
    assert elements(folder, cfg) is None and foretold(cfg) is None


def test_peft_chooses_modules_that_are_not_known_here():
    assert elements(saved_model("llama"), config_for(saved_model("llama"), **lora())) is None


def test_layers_that_predict_further_tokens_are_not_read(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    cfg = config_for(folder, **LORA)
    assert 2 * elements(folder, cfg) == elements(saved_model("llama"), cfg)
    assert foretold(cfg) == foretold(
        config_for(saved_model("llama"), **LORA, overrides_of_model_config={"num_hidden_layers": 1})
    )
