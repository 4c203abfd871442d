"""The engine on tensors without values holds what it holds with them: each phase of a step, to the byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from allranks.config import RunConfig
from allranks.config.load import resolve_mapping
from allranks.errors import AllranksError, ConfigError
from allranks.model.build import build_model
from allranks.model.placement import place
from allranks.trace import traced_memory
from allranks.trace.asked import Asked, refuse, traced_keys
from allranks.trace.child import peaks
from allranks.trace.layers import FEW, SENT, equal_layers, largest, peaks_of_many, with_layers
from allranks.trace.recorder import Recorder
from allranks.trace.step import batch_of, peaks_of_steps
from tests.ranks import run_ranks
from tests.tiny_models import saved_model

LENGTHS = (24, 40)
FSDP = {"fsdp_version": 2}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 4, "lora_target_linear": True}
AGAIN = {"gradient_checkpointing": True}
BF16 = {"bf16": True}


def config(folder: str = "model", **keys: Any) -> RunConfig:
    own = {"base_model": folder, "datasets": [{"path": "d.jsonl", "type": "completion"}], "output_dir": "out"}
    return resolve_mapping({**own, "learning_rate": 0.1, "sequence_len": 64, "sample_packing": True, **keys})


def asked(cfg: RunConfig, model: Mapping[str, Any], num_ranks: int, **changes: Any) -> Asked:
    own = {"ranks_per_node": num_ranks, "num_micro_batches": 1, "lengths": LENGTHS, "labelled": 0.5}
    others = {"on_cpu": True, "every_layer": False, **own, **changes}
    return Asked(keys=traced_keys(cfg, micro_batch_size=1, on_cpu=True), model=model, num_ranks=num_ranks, **others)


def real(cfg: RunConfig, rank: int = 0, num_ranks: int = 1, *, num_micro_batches: int = 1) -> dict:
    model = build_model(cfg, place(cfg, torch.device("cpu"), rank, num_ranks))
    batch = batch_of(LENGTHS, 0.5)
    return peaks_of_steps(cfg, model, Recorder(), batch, num_micro_batches=num_micro_batches)


def totals(found: Mapping[Any, Mapping[str, float]]) -> dict[Any, float]:
    return {phase: sum(parts.values()) for phase, parts in found.items()}


@pytest.mark.parametrize(
    ("name", "keys"),
    [("llama-tied", LORA), ("qwen3-moe", {**AGAIN, **BF16}), ("qwen3-moe", LORA)],
    ids=["tied with an adapter", "experts, recomputed", "float32 experts under an adapter"],
)
def test_one_process_holds_as_much_with_values_as_without(name, keys):
    """But for some bytes: experts count their tokens in another type on the CPU."""
    folder = saved_model(name)
    cfg = config(str(folder), **keys)
    read = json.loads((folder / "config.json").read_text())
    without = peaks(asked(cfg, read, 1, num_micro_batches=2), read)
    assert totals(without) == pytest.approx(totals(real(cfg, num_micro_batches=2)), rel=0.001)


SHARED = {
    "ddp": {},
    "fsdp": {**FSDP, **AGAIN},
}


def _compare(rank: int, folder: str, without: dict[str, dict]) -> None:
    """The least of three: what gloo's threads let go of late, on a busy machine, only adds."""
    for name, keys in SHARED.items():
        every = [totals(real(config(folder, **keys), rank, 2)) for _ in range(3)]
        found = {phase: min(one[phase] for one in every) for phase in every[0]}
        assert rank != 0 or without[name] == pytest.approx(found, rel=0.01), name


def test_two_ranks_hold_as_much_with_values_as_without():
    """But for a hundredth: gloo gives a sum of some numbers another tensor than the fake group does."""
    folder = saved_model("qwen3")
    read = json.loads((folder / "config.json").read_text())
    without = {}
    for name, keys in SHARED.items():
        one = asked(config(str(folder), **keys), read, 2)
        phases = peaks(one, read, gloo=False)
        phases.pop(SENT, None)  # before the first step
        without[name] = totals(phases)
    run_ranks(_compare, str(folder), without)


WIDE = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "layer_types": ["full_attention"] * 8,
}


def test_few_layers_tell_of_many():
    """To half a percent: which is why a model of equal layers is traced with few of them."""
    one = asked(config(**FSDP, **AGAIN, **BF16), WIDE, 8)
    all_of_them = largest(peaks(one, WIDE))
    few, more = (peaks(one, with_layers(WIDE, 8, number)) for number in FEW)
    told = largest(peaks_of_many(few, more, 8))
    assert sum(told.values()) == pytest.approx(sum(all_of_them.values()), rel=0.005)


def test_layers_are_equal_if_nothing_in_them_differs():
    assert equal_layers(asked(config(), WIDE, 1)) == 8
    mixed = {**WIDE, "layer_types": ["full_attention", "sliding_attention"] * 4, "sliding_window": 8}
    assert equal_layers(asked(config(), {**mixed, "use_sliding_window": True}, 1)) is None
    experts = {**WIDE, "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 32}
    assert equal_layers(asked(config(), {**experts, "mlp_only_layers": [0]}, 1)) is None
    assert equal_layers(asked(config(unfrozen_parameters=["layers.1."]), WIDE, 1)) is None


def test_the_trace_of_a_gpu_comes_from_a_process_of_its_own():
    many = traced_memory(config(**FSDP), WIDE, num_ranks=2, ranks_per_node=2, micro_batch_size=2)
    elements = 4 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160) * 8 + 4 * 2 * 512 * 64
    assert many.parameters == pytest.approx(elements / 2, rel=0.1)  # norms beside, and what an allocator rounds up
    assert many.optimizer == pytest.approx(2 * many.parameters, rel=0.05)
    assert many.total > many.parameters + many.optimizer and many.adapter == 0


def test_what_has_no_values_to_run_with_is_refused_by_its_key():
    for keys, named in (
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "deepspeed"),
        ({**LORA, "adapter": "qlora"}, "load_in_4bit"),
        ({"fsdp_version": 2, "fsdp_config": {"offload_params": True}}, "offload_params"),
    ):
        with pytest.raises(ConfigError, match=f"{named}.* without --trace"):
            refuse(config(**keys), 2, 2)


def test_a_trace_has_a_deadline():
    with pytest.raises(AllranksError, match="did not end within 0 s"):
        traced_memory(config(), WIDE, num_ranks=2, ranks_per_node=2, deadline_seconds=0.05)
