"""A tiny model with random weights, and a few steps of training with the engine's own parts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from allranks.config.load import resolve_mapping
from allranks.model.batch import TorchBatch
from allranks.model.build import build_model
from allranks.model.placement import Placement
from allranks.model.train_model import TrainModel
from allranks.train.strategies import Strategy, make_strategy

VOCABULARY = 1024
LENGTHS = (70, 33, 150, 3)
"""Tokens of a row's documents: one longer than every window below, one shorter than a kernel's tile."""
STEPS = 6

# Heads of 64 channels: of a size that every attention kernel takes.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOWS: dict[str, Any] = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 32},
    # Small caps, so that one that is left out shows.
    "gemma2": {**_WINDOWS, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 64},
    "gpt_oss": {**_WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@dataclass(frozen=True)
class Trained:
    """Losses and gradient norms by step. `first_seconds`: of the first step; `seconds`: of each later one."""

    losses: list[float]
    grad_norms: list[float]
    first_seconds: float
    seconds: float
    model: TrainModel
    strategy: Strategy


def saved_model(folder: Path, architecture: str = "llama") -> Path:
    """A float32 model with random weights in `folder`, made where it is not there yet."""
    path = folder / architecture
    if not path.exists():
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **_SIZES, **ARCHITECTURES[architecture])
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    return path


def flat(model: Path, **keys: Any) -> dict[str, Any]:
    """A config of packed documents in float32, with `keys`."""
    usual = {"base_model": str(model), "datasets": [{"path": "none.jsonl", "type": "alpaca"}], "sample_packing": True}
    return {**usual, "learning_rate": 1e-3, "lr_scheduler": "constant", "bf16": False, **keys}


def device_of(name: str) -> torch.device:
    return torch.device("cuda", 0) if name == "cuda" else torch.device(name)


def batch(device: torch.device, lengths: Sequence[int] = LENGTHS, vocabulary: int = VOCABULARY) -> TorchBatch:
    """A row of documents of random tokens, labelled but for their first third; the same on every device."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    labelled = torch.cat([(place := torch.arange(n)).lt(n - 1) & place.ge(n // 3) for n in lengths])
    where = labelled.nonzero()[:, 0]
    tensors = [tensor.to(device) for tensor in (ids, positions[None], where, ids[0, where + 1])]
    total = sum(lengths)
    return TorchBatch(tensors[0], tensors[1], tuple(lengths), tensors[2], tensors[3], total, (total,))


def trained(model: Path, device: str, placement: Placement | None = None, steps: int = STEPS, **keys: Any) -> Trained:
    """Train on one row over and over, so that the loss falls; `keys` are those of the config.

    Raises what the engine raises: ConfigError for what cannot be had on this device.
    """
    cfg = resolve_mapping(flat(model, **keys))
    where = device_of(device)
    built = build_model(cfg, placement or Placement("single", where))
    strategy = make_strategy(cfg, built)
    row = batch(where)
    losses, norms, times = [], [], []
    for _ in range(steps):
        started = time.perf_counter()
        with strategy.micro_batch(last=True):
            loss = built.forward_losses(row).cross_entropy / len(row.labels)
            strategy.backward(loss)
        norms.append(float(strategy.step()))  # reading it waits for the device
        losses.append(float(loss.detach()))
        times.append(time.perf_counter() - started)
    return Trained(losses, norms, times[0], sum(times[1:]) / max(len(times) - 1, 1), built, strategy)
