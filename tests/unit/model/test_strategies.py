"""One process, DDP and FSDP2 on two: equal first weights, losses and gradients, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from allranks.config.load import resolve_mapping
from allranks.model.build import build_model
from allranks.model.placement import place
from tests.ranks import run_ranks
from tests.tiny_models import flat_for, make_batch, saved_model

_LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 3, "lora_alpha": 6, "lora_target_linear": True}

_EXPERTS = {"lora_target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}

_COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}

# So much of it that it shows.
ROUTER = {"overrides_of_model_config": {"output_router_logits": True, "router_aux_loss_coef": 2.0}}

# What is trained: name -> (architecture, keys).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {"chunked_cross_entropy_num_chunks": 3}),
    "tied": ("llama-tied", {"chunked_cross_entropy_num_chunks": 3}),
    "experts": ("qwen3-moe", {}),
    "router loss": ("mixtral", ROUTER),
    "router loss, compiled and recomputed": ("qwen3-moe", {**ROUTER, **_COMPILED, "gradient_checkpointing": True}),
    "recomputed": ("gemma3", {"gradient_checkpointing": True}),
    "recomputed, inputs on the host": ("llama", {"gradient_checkpointing": "offload"}),
    "partly frozen": ("llama", {"unfrozen_parameters": ["lm_head", "model.layers.1.mlp"]}),
    "lora": ("qwen3", _LORA),
    "dora": ("llama", {**_LORA, "peft_use_dora": True, "peft_use_rslora": True}),
    "lora on the output layer": (
        "llama",
        {**_LORA, "lora_target_linear": False, "lora_target_modules": ["lm_head", "q_proj"]}
        | {"chunked_cross_entropy_num_chunks": 3},
    ),
    "qlora": ("qwen3", {**_LORA, "adapter": "qlora", "gradient_checkpointing": True}),
    "lora over 8 bits": ("llama", {**_LORA, "load_in_8bit": True}),
    "qlora, experts too": ("qwen3-moe", {**_LORA, **_EXPERTS, "adapter": "qlora", "quantize_moe_experts": True}),
    "lora over 8 bits, experts too, recomputed": (
        "gpt-oss",
        {**_LORA, "load_in_8bit": True, "quantize_moe_experts": True, "gradient_checkpointing": True},
    ),
    "lora, compiled and recomputed": (
        "llama",
        {**_LORA, **_COMPILED, "gradient_checkpointing": True},
    ),
    "lora on experts": ("qwen3-moe", {**_LORA, **_EXPERTS}),
    "lora with embeddings": ("llama", {**_LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]}),
    "lora with tied embeddings": ("llama-tied", {**_LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]}),
}

# How it is spread over two ranks.
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"fsdp_version": 2},
    "fsdp, reduced every batch": {"fsdp_version": 2, "fsdp_config": {"sync_each_batch": True}},
    "fsdp, kept gathered": {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}},
    "fsdp, offloaded": {"fsdp_version": 2, "fsdp_config": {"offload_params": True}},
}

# Every model under plain DDP and FSDP; the variants of FSDP where they could differ.
CASES = [(model, strategy) for model in MODELS for strategy in ("ddp", "fsdp")]
CASES += [(model, strategy) for model in ("tied", "lora", "qlora") for strategy in list(STRATEGIES)[2:]]


def one_step(flat: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """First weights, loss and summed gradients over three micro-batches; with two ranks, the second has one less."""
    cfg = resolve_mapping(flat)
    model = build_model(cfg, place(cfg, torch.device("cpu"), rank, world_size))
    whole = {name: _whole(parameter) for name, parameter in model.hf_model.named_parameters()}
    batches = [make_batch(1), make_batch(2), make_batch(3)]
    mine = batches if world_size == 1 else [batches[:2], [batches[2], _without_labels(batches[0])]][rank]
    total = torch.zeros(())
    for index, batch in enumerate(mine):
        with model.gradient_sync(index == len(mine) - 1):
            losses = model.forward_losses(batch)
            loss = losses.cross_entropy
            if model.router is not None:
                loss = loss + losses.router * model.router.coefficient
            (loss * world_size).backward()
        total += loss.detach()
    if world_size > 1:
        dist.all_reduce(total)
    gradients = {name: _whole(p.grad) for name, p in model.hf_model.named_parameters() if p.requires_grad}
    return {"weights": whole, "loss": total, "gradients": gradients, "kind": model.placement.kind}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Packed weights have another dtype under FSDP, and as numbers may be NaN."""
    return tensor.flatten().view(torch.uint8)


def _without_labels(batch):
    return type(batch)(
        batch.input_ids, batch.position_ids, batch.lengths, batch.label_positions[:0], batch.labels[:0], 0, ()
    )


def _rank(rank: int, flats: list[dict[str, Any]], out: Path) -> None:
    results = [one_step(flat, rank, 2) for flat in flats]
    if rank == 0:
        torch.save(results, out)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> dict[tuple[str, str], dict[str, Any]]:
    """All cases in one pair of processes, for starting them costs more than running them."""
    flats = [flat_for(saved_model(MODELS[m][0]), **MODELS[m][1], **STRATEGIES[s]) for m, s in CASES]
    out = tmp_path_factory.mktemp("ranks") / "results.pt"
    run_ranks(_rank, flats, out)
    return dict(zip(CASES, torch.load(out), strict=True))


_alone: dict[str, dict[str, Any]] = {}


@pytest.mark.parametrize(("model", "strategy"), CASES)
def test_two_ranks_do_what_one_process_does(on_two, model, strategy):
    if model not in _alone:
        _alone[model] = one_step(flat_for(saved_model(MODELS[model][0]), **MODELS[model][1]), 0, 1)
    alone, together = _alone[model], on_two[model, strategy]
    assert together["kind"] == strategy[: len(together["kind"])]
    assert together["weights"].keys() == alone["weights"].keys()
    for name, weight in alone["weights"].items():
        assert torch.equal(_bytes(together["weights"][name]), _bytes(weight)), name
    torch.testing.assert_close(together["loss"], alone["loss"], rtol=1e-6, atol=1e-6)
    assert together["gradients"].keys() == alone["gradients"].keys()
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(together["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_no_labels_give_zero_gradients_for_everything_trained(model):
    flat = flat_for(saved_model(MODELS[model][0]), **MODELS[model][1])
    cfg = resolve_mapping(flat)
    built = build_model(cfg, place(cfg, torch.device("cpu"), 0, 1))
    losses = built.forward_losses(_without_labels(make_batch(1)))
    for loss in (losses.cross_entropy, losses.router):
        if loss is not None:
            assert loss.item() == 0 and loss.dtype == torch.float32
            loss.backward(retain_graph=True)
    for name, parameter in built.hf_model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and not parameter.grad.any(), name
