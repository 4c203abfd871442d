"""Base models that lie in MXFP4 (gpt-oss) are read as the numbers that transformers reads from them."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Mxfp4Config

from allranks.errors import ConfigError
from allranks.export.export import export
from allranks.model.build import build_model
from allranks.model.files import stored_config
from allranks.model.quantized.mxfp4 import gather_blocks
from allranks.model.stored_kind import stored_kind_warning
from allranks.model.weights import find_weights, read_rows, read_tensor
from tests.tiny_models import config_for, make_batch, one_process, saved_model, saved_mxfp4
from tests.tiny_runs import LORA, train

ASKED = {"model_quantization_config": "Mxfp4Config", "model_quantization_config_kwargs": {"dequantize": True}}
# By the format's own table: sign, two bits of exponent, one of mantissa.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
ONE = make_batch(1, (11,))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved_mxfp4(tmp_path_factory.mktemp("mxfp4") / "base")


def test_the_numbers_are_those_of_the_format_and_any_rows_can_be_read_alone(base):
    stored = gather_blocks(find_weights(base))
    there = load_file(base / "model.safetensors")
    assert not any(name.endswith(("_blocks", "_scales")) for name in stored)
    made = [name for name in stored if name not in there]
    assert len(made) == 4
    for name in made:
        blocks, scales = there[f"{name}_blocks"], there[f"{name}_scales"]
        numbers = torch.stack([E2M1[(blocks & 15).long()], E2M1[(blocks >> 4).long()]], -1).flatten(-2)
        expected = (numbers * 2.0 ** (scales.float() - 127)[..., None]).flatten(-2).transpose(1, 2)
        whole = read_tensor(stored[name])
        assert torch.equal(whole.float(), expected) and whole.shape == stored[name].shape
        part = torch.empty((2, *whole.shape[1:]))
        read_rows(stored[name], 1, part)
        assert torch.equal(part, expected[1:3])


@pytest.mark.parametrize("keys", [{}, ASKED, {**LORA, **ASKED}], ids=["not asked", "whole", "lora"])
def test_the_model_is_the_one_that_transformers_dequantizes(base, keys):
    ours = build_model(config_for(base, **keys), one_process())
    theirs = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    )
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ONE), theirs(ONE.input_ids).logits, rtol=1e-5, atol=1e-5)
    assert not hasattr(ours.config, "quantization_config")


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_exported_is_plain_and_was_compared(base, tmp_path, whole):
    trained = train(tmp_path / "run", "gpt-oss", base_model=str(base), **ASKED, **({} if whole else LORA))
    said: list[str] = []
    done = export(tmp_path / "run", tmp_path / "out", merge=not whole, report=said.append)
    assert sum(line.startswith("compared with the trained model: all ") for line in said) == 1
    assert "quantization_config" not in json.loads((done.folder / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(done.folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ONE.input_ids).logits, trained.model.logits(ONE), rtol=1e-4, atol=1e-4)


REFUSED = {
    "packed": ({"model_quantization_config": "Mxfp4Config"}, "{dequantize: true}`"),
    "packed by name": ({**ASKED, "model_quantization_config_kwargs": {"dequantize": False}}, "{dequantize: true}`"),
    "alone": ({"model_quantization_config_kwargs": {"dequantize": True}}, "add `model_quantization_config: Mxfp4C"),
    "twice": ({**ASKED, **LORA, "adapter": "qlora"}, "would be rounded a second time"),
    "fp8": ({"model_quantization_config": "FineGrainedFP8Config"}, "weights in fp8 cannot be trained"),
    "slip": (
        {**ASKED, "model_quantization_config_kwargs": {"dequantise": True}},
        "did you mean model_quantization_config_kwargs.dequantize?",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_while_the_config_is_read(case):
    keys, message = REFUSED[case]
    with pytest.raises(ConfigError, match=rf"model_quantization_config.*{re.escape(message)}"):
        config_for(saved_model("gpt-oss"), **keys)


def test_not_rounded_a_second_time(base):
    with pytest.raises(ConfigError, match=r"load_in_4bit: .* holds weights in MXFP4, which would be rounded a second"):
        build_model(config_for(base, **{**LORA, "adapter": "qlora"}), one_process())


def test_asked_of_a_model_that_is_stored_otherwise_it_is_told_or_refused(tmp_path):
    plain = saved_model("gpt-oss")
    told = stored_kind_warning(stored_config(config_for(plain, **ASKED)), config_for(plain, **ASKED))
    assert told and told.startswith("model_quantization_config: Mxfp4Config is without effect") and str(plain) in told
    assert stored_kind_warning(stored_config(config_for(plain)), config_for(plain)) is None
    other = tmp_path / "fp8"
    other.mkdir()
    config = json.loads((plain / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ConfigError, match=r"are not in MXFP4, its config\.json says quant_method: fp8"):
        build_model(config_for(other, **ASKED), one_process())


def test_of_a_model_in_mxfp4_there_is_nothing_to_tell(base):
    cfg = config_for(base, **ASKED)
    assert stored_config(cfg)["quantization_config"] and stored_kind_warning(stored_config(cfg), cfg) is None
