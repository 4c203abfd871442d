"""Tiny models of several architectures with random weights, and micro-batches to run them on."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from allranks.config import RunConfig
from allranks.config.load import resolve_mapping
from allranks.model.batch import TorchBatch
from allranks.model.placement import Placement

VOCABULARY = 97

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Name -> what differs from the small default. Windows are shorter than the documents below.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True},
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma2": {
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        # Small caps, so that a cap that is left out shows.
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 1.0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"sliding_window": 4},
    "phi3": {"sliding_window": None},
    "gpt-oss": {
        "model_type": "gpt_oss",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        **_EXPERTS,
    },
    "mixtral": _EXPERTS,
    "qwen3-moe": {"model_type": "qwen3_moe", **_EXPERTS},
    # Latent attention; a layer without experts, and an expert for all tokens, with linear layers of experts' names.
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 12,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "head_dim": 4,  # of what is rotated
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "olmo2": {},
    "cohere": {},
    "granite": {},
}


def make_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A random float32 model; norms and biases random too, so that one that is not loaded shows."""
    changes = dict(ARCHITECTURES[name])
    config = AutoConfig.for_model(changes.pop("model_type", name), **{**_SMALL, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


_saved: dict[str, Path] = {}


def saved_model(name: str) -> Path:
    """The folder of an architecture's model, saved by transformers once a process."""
    if name not in _saved:
        _saved[name] = Path(tempfile.mkdtemp(prefix=f"tiny-{name}-", dir=_root()))
        make_model(name).save_pretrained(_saved[name])
    return _saved[name]


@cache
def _root() -> str:
    folder = tempfile.mkdtemp(prefix="allranks-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def config_for(folder: Path, **keys: Any) -> RunConfig:
    return resolve_mapping(flat_for(folder, **keys))


def flat_for(folder: Path, **keys: Any) -> dict[str, Any]:
    """Flat keys of a float32 run over packed documents."""
    flat = {
        "base_model": str(folder),
        "datasets": [{"path": "none.jsonl", "type": "alpaca"}],
        "sample_packing": True,
        "learning_rate": 1e-3,
        "bf16": False,
    }
    return {**flat, **keys}


def one_process() -> Placement:
    return Placement("single", torch.device("cpu"))


def make_batch(seed: int, lengths: tuple[int, ...] = (7, 5, 9)) -> TorchBatch:
    """Documents of random tokens; about half of the positions that have a next token are labelled."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    has_next = torch.cat([torch.arange(length) < length - 1 for length in lengths])
    labelled = has_next & (torch.rand(sum(lengths), generator=generator) < 0.5)
    where = labelled.nonzero()[:, 0]
    return TorchBatch(ids, positions[None], lengths, where, ids[0, where + 1], sum(lengths), (sum(lengths),))


def saved_mxfp4(folder: Path) -> Path:
    """A gpt-oss whose experts lie in MXFP4, with random numbers in them."""
    shutil.copytree(saved_model("gpt-oss"), folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    sizes = {"gate_up_proj": (128, 1), "down_proj": (32, 2)}  # outputs, blocks of 32 inputs, of 64 inner features
    for name in [name for name in tensors if name.endswith(tuple(sizes))]:
        shape = (len(tensors.pop(name)), *sizes[name.rpartition(".")[2]])
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 126, shape, generator=generator, dtype=torch.uint8)
    for name in [name for name in tensors if name.endswith("gate_up_proj_bias")]:
        tensors[name] = torch.randn((len(tensors[name]), 128), generator=generator) * 0.2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"intermediate_size": 64, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
