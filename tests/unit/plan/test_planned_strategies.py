"""What is said before a run of its steps: which strategies are told of, and that it is what the config's own does."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from allranks.config.load import resolve_mapping
from allranks.launch.preflight.sizes import sizes
from allranks.plan.step import PlannedStep, communication_share

LAYERS, WIDTH, VOCABULARY = 2, 1024, 4096
SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, WIDTH),
    **{f"model.layers.{n}.{name}.weight": (WIDTH, WIDTH) for n in range(LAYERS) for name in ("q_proj", "up_proj")},
}
NUM_PARAMETERS = VOCABULARY * WIDTH + 2 * LAYERS * WIDTH * WIDTH
EXPERTS = {f"model.layers.0.mlp.experts.{n}.up_proj.weight": (WIDTH, WIDTH) for n in range(8)}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": ["q_proj"]}
NUM_LORA = LAYERS * 8 * 2 * WIDTH


def steps(
    tmp_path, num_nodes: int = 2, num_processes: int = 4, on_cpu: bool = False, **keys: Any
) -> dict[str, PlannedStep]:
    """By name; the model's files are only their headers, which is all that is read of them."""
    shapes = keys.pop("shapes", SHAPES)
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header).encode()
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    of_model = {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS, **keys.pop("of_model", {})}
    (folder / "config.json").write_text(json.dumps(of_model))
    flat = {
        "base_model": str(folder),
        "datasets": [{"path": str(tmp_path / "data.jsonl"), "type": "completion"}],
        "output_dir": str(tmp_path / "out"),
        "learning_rate": 0.1,
        **keys,
    }
    found = sizes(resolve_mapping(flat), num_nodes=num_nodes, num_processes=num_processes, on_cpu=on_cpu).steps
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


def test_the_configs_own_strategy_is_told_first_and_each_other_once(tmp_path):
    of_ddp = steps(tmp_path)
    names = ["DDP", "HSDP (dp_shard_size: node)", "FSDP2 with reshard_after_forward: false", "FSDP2"]
    assert [name for name in of_ddp if not name.startswith("ZeRO")] == names
    assert {"ZeRO-2", "ZeRO-3"} <= set(of_ddp)
    assert [one.name for one in of_ddp.values() if one.is_own] == ["DDP"]
    others = list(of_ddp.values())[1:]
    assert others == sorted(others, key=lambda one: one.node_sends_bytes)
    of_zero = steps(tmp_path, deepspeed={"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}})
    assert next(iter(of_zero)) == "ZeRO-3" and of_zero["ZeRO-3"].is_own and set(of_zero) == set(of_ddp)


@pytest.mark.parametrize(
    ("name", "keys", "sent"),
    [
        # Of 8 ranks on 2 nodes: 7/8 of a message leave a node, of an all-reduce twice that. Gradients in 4 bytes,
        # gathered weights in 2.
        ("DDP", {}, 7 / 8 * 2 * 4),
        ("DDP with ddp_comm_hook: bf16", {"ddp_comm_hook": "bf16"}, 7 / 8 * 2 * 2),
        ("FSDP2", {"fsdp_version": 2}, 7 / 8 * (2 * 2 + 4)),
        ("FSDP2 with reduce_dtype: bfloat16", {"fsdp_config": {"reduce_dtype": "bfloat16"}}, 7 / 8 * (2 * 2 + 2)),
        ("FSDP2", {"fsdp_version": 2, "gradient_accumulation_steps": 3}, 7 / 8 * (3 * 2 * 2 + 4)),
        ("FSDP2", {"fsdp_version": 2, "batch_size": 24}, 7 / 8 * (3 * 2 * 2 + 4)),
        (
            "FSDP2 with sync_each_batch: true",
            {"fsdp_config": {"sync_each_batch": True}, "batch_size": 24},
            21.0,
        ),  # 7/8 of 24
        ("FSDP2", {"fsdp_version": 2, "bf16": False}, 7 / 8 * (2 * 4 + 4)),
        ("HSDP (shards over 4 ranks)", {"dp_shard_size": "node"}, 1 / 2 * 2 * 4),
        ("HSDP (shards over 2 ranks)", {"dp_shard_size": 2}, 3 / 4 * 2 * 4),
    ],
)
def test_bytes_follow_the_config(tmp_path, name, keys, sent):
    own = steps(tmp_path, **keys)[name]
    assert own.is_own and own.node_sends_bytes == pytest.approx(sent * NUM_PARAMETERS)


def test_on_cpus_numbers_are_of_4_bytes_and_gloo_reduces_all(tmp_path):
    own = steps(tmp_path, on_cpu=True, fsdp_version=2)["FSDP2"]
    assert own.node_sends_bytes == pytest.approx(7 / 8 * (2 * 4 + 2 * 4) * NUM_PARAMETERS)


def test_lora_sends_only_what_is_trained_where_the_model_is_whole(tmp_path):
    found = steps(tmp_path, **LORA)
    assert found["DDP"].node_sends_bytes == pytest.approx(7 / 8 * 2 * 4 * NUM_LORA)
    gathered = 2 * 2 * (NUM_PARAMETERS + NUM_LORA)
    assert found["FSDP2"].node_sends_bytes == pytest.approx(7 / 8 * (gathered + 4 * NUM_LORA))
    assert found["DDP"].state_bytes == pytest.approx(2 * NUM_PARAMETERS + 4 * 4 * NUM_LORA)


def test_of_packed_weights_only_what_ddp_sends_is_told(tmp_path):
    assert list(steps(tmp_path, **{**LORA, "adapter": "qlora", "load_in_4bit": True})) == ["DDP"]


def test_operations_count_experts_that_work_and_what_is_computed_twice(tmp_path):
    tokens = 2 * 3 * 512
    keys = {"sequence_len": 512, "micro_batch_size": 2, "gradient_accumulation_steps": 3}
    assert steps(tmp_path, **keys)["DDP"].flops == 6 * NUM_PARAMETERS * tokens
    again = steps(tmp_path, **keys, gradient_checkpointing=True)["DDP"]
    assert again.flops == 8 * NUM_PARAMETERS * tokens
    frozen = steps(tmp_path, **keys, **LORA)["DDP"]
    assert frozen.flops == pytest.approx((4 * NUM_PARAMETERS + 2 * NUM_LORA) * tokens)
    experts = {"shapes": {**SHAPES, **EXPERTS}}
    known = steps(tmp_path, **keys, **experts, of_model={"num_experts": 8, "num_experts_per_tok": 2})["DDP"]
    assert known.flops == pytest.approx(6 * (NUM_PARAMETERS + 2 * WIDTH * WIDTH) * tokens)
    assert steps(tmp_path, **keys, **experts)["DDP"].flops is None


def test_shards_hold_their_part(tmp_path):
    found = steps(tmp_path)
    whole = found["DDP"].state_bytes
    assert whole == 16 * NUM_PARAMETERS
    assert found["FSDP2"].state_bytes == whole / 8
    assert found["HSDP (dp_shard_size: node)"].state_bytes == whole / 4
    assert found["ZeRO-3"].state_bytes == whole / 8
    assert found["ZeRO-2"].state_bytes == pytest.approx((2 + (2 + 12) / 8) * NUM_PARAMETERS)


@pytest.mark.parametrize(
    "keys",
    [
        {"num_nodes": 1},
        {"base_model": "no-one/no-model"},
        {"unfrozen_parameters": [".*q_proj.*"]},
        {"base_model": "no name of the Hub at all/a/b"},
    ],
)
def test_nothing_is_told_of_what_is_not_known(tmp_path, keys):
    assert steps(tmp_path, **keys) == {}


def test_a_model_in_the_hubs_cache_is_read_there(tmp_path, monkeypatch):
    told = steps(tmp_path)
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "model").rename(snapshot)
    references = snapshot.parent.parent / "refs"
    references.mkdir()
    (references / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert steps(tmp_path, base_model="some/model") == told


def test_the_share_is_of_a_step_with_and_without_overlap():
    assert communication_share(3.0, 1.0) == (0.75, pytest.approx(2 / 3))
    assert communication_share(1.0, 3.0) == (0.25, 0.0)
    assert communication_share(0.0, 0.0) == (0.0, 0.0)
