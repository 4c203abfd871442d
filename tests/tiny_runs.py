"""Run directories with a checkpoint, without the training."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from allranks.checkpoint import commit
from allranks.config.load import resolve_mapping
from allranks.model.build import build_model
from allranks.model.train_model import TrainModel
from allranks.train.committing_writer import CommittingWriter
from tests.tiny_models import flat_for, make_batch, one_process, saved_model

BATCH = make_batch(1, (11,))
LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 3, "lora_alpha": 6, "lora_target_linear": True}


@dataclass
class Trained:
    """A run directory with one checkpoint, and the logits that its model gives. `model_keys`: its config, flat."""

    run: Path
    model_keys: dict[str, Any]
    logits: torch.Tensor
    model: TrainModel


def train(run: Path, name: str, step: int = 7, seed: int = 5, tokenizer: Any = None, **keys: Any) -> Trained:
    """As if trained: every trainable parameter moved; then saved as the engine saves."""
    flat = flat_for(saved_model(name), **keys)
    cfg = resolve_mapping(flat)
    model = build_model(cfg, one_process(), tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.hf_model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)

    checkpoint = commit.checkpoint_path(run / "checkpoints", step)
    hf = checkpoint / "hf"
    hf.mkdir(parents=True)
    model.config.save_pretrained(hf)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(hf)
    else:
        (hf / "tokenizer.json").write_text("{}")
    if model.peft_config is not None:
        model.peft_config.save_pretrained(str(hf))
    state = {"step": step, "adapter": model.peft_config is not None, "config": cfg.flat()}
    (checkpoint / "state.json").write_text(json.dumps(state))
    tensors = get_model_state_dict(model.module, options=StateDictOptions(ignore_frozen_params=True))
    contents = {"model": tensors, "optimizer": {"step": torch.tensor(step)}}
    dcp.save(contents, storage_writer=CommittingWriter(checkpoint, {"step": step}), no_dist=True)
    model.hf_model.eval()
    return Trained(run, flat, model.logits(BATCH), model)
