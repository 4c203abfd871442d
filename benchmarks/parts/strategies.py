"""Strategies of several ranks with one: what they compute is what one process computes without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from allranks.cluster.identity import identify
from allranks.config.load import resolve_mapping
from allranks.model import placement
from allranks.train import world
from benchmarks.parts.part import Place, Row, agreement
from benchmarks.parts.tiny import flat, saved_model, trained

_LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}


def _zero(stage: int) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage}}}


_WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "fsdp": {
        "FSDP2": {"fsdp_version": 2},
        "FSDP2, parameters kept gathered": {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}},
        "FSDP2, parameters on the host": {"fsdp_version": 2, "fsdp_config": {"offload_params": True}},
        "FSDP2, recomputed": {"fsdp_version": 2, "gradient_checkpointing": True},
        "FSDP2, LoRA": {"fsdp_version": 2, **_LORA},
    },
    "zero": {**{f"ZeRO-{stage}": _zero(stage) for stage in (1, 2, 3)}, "ZeRO-3, LoRA": {**_zero(3), **_LORA}},
}


def run(place: Place) -> Iterator[Row]:
    model = saved_model(place.scratch)
    device = world.join(identify({}), timeout_seconds=60, needs_group=True)
    assert device.type == place.device, f"the engine chose {device}"
    plain: dict[tuple[bool, bool], list[float]] = {}
    for name, keys in _WAYS[place.argument].items():
        for dtype, bf16, tolerance in (("float32", False, 1e-4), ("bfloat16", True, 1e-2)):
            adapter = _LORA if "adapter" in keys else {}
            if (bf16, bool(adapter)) not in plain:
                plain[bf16, bool(adapter)] = trained(model, place.device, bf16=bf16, **adapter).losses
            found = trained(model, place.device, _placed(device, flat(model, bf16=bf16, **keys)), bf16=bf16, **keys)
            yield agreement(f"{name}, {dtype}", found.losses, plain[bf16, bool(adapter)], tolerance)


def _placed(device: torch.device, keys: dict[str, Any]) -> placement.Placement:
    if "deepspeed" in keys:
        return placement.place(resolve_mapping(keys), device, 0, 1)
    # One rank has nothing to share, and the engine leaves FSDP out: here it is there all the same.
    return placement.Placement("fsdp", device, init_device_mesh(device.type, (1,), mesh_dim_names=("shard",)))
