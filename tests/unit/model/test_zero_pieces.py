"""ZeRO-3: weights go from the files into the pieces of two ranks, bit by bit, and no rank ever has them all."""

from pathlib import Path
from typing import Any

import pytest
import torch

from allranks.config.load import resolve_mapping
from allranks.model.build import build_model
from allranks.model.placement import place
from tests.ranks import run_ranks
from tests.tiny_models import flat_for, saved_model

pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install -e .[deepspeed]")

LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 3, "lora_alpha": 6, "lora_target_linear": True}
# Tied weights, experts that are put together of stored parts, an adapter, and sizes that two do not divide.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {}),
    "tied": ("llama-tied", {}),
    "experts": ("qwen3-moe", {}),
    "lora": ("qwen3", {**LORA, "lora_r": 3}),
    "lora with embeddings": ("llama", {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]}),
}


def _flat(model: str) -> dict[str, Any]:
    return flat_for(saved_model(MODELS[model][0]), **MODELS[model][1])


def _rank(rank: int, flats: dict[str, dict[str, Any]], out: Path) -> None:
    pieces: dict[str, dict[str, torch.Tensor]] = {}
    for name, flat in flats.items():
        cfg = resolve_mapping({**flat, "deepspeed": {"zero_optimization": {"stage": 3}}})
        model = build_model(cfg, place(cfg, torch.device("cpu"), rank, 2)).hf_model
        assert all(parameter.numel() == 0 for parameter in model.parameters()), "held whole"
        pieces[name] = {key: parameter.ds_tensor.clone() for key, parameter in model.named_parameters()}
    torch.save(pieces, out / f"{rank}.pt")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> list[dict[str, dict[str, torch.Tensor]]]:
    out = tmp_path_factory.mktemp("ranks")
    run_ranks(_rank, {name: _flat(name) for name in MODELS}, out)
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("model", MODELS)
def test_the_pieces_of_two_ranks_are_the_weights(pieces, model):
    cfg = resolve_mapping(_flat(model))
    whole = dict(build_model(cfg, place(cfg, torch.device("cpu"), 0, 1)).hf_model.named_parameters())
    assert pieces[0][model].keys() == whole.keys()
    for name, weight in whole.items():
        joined = torch.cat([of_rank[model][name] for of_rank in pieces])
        assert torch.equal(joined[: weight.numel()].view_as(weight), weight), name
        assert not joined[weight.numel() :].any(), f"{name}: padding must be zero"
