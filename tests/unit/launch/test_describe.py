from dataclasses import replace
from pathlib import Path

import pytest

from allranks.config.load import resolve_mapping
from allranks.launch.describe import ONE_VOICE, describe, end_of_node, place_of_node, strategy_name
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.observe import RunDir

BASE = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d", "type": "alpaca"}]}
FSDP = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}


@pytest.mark.parametrize(
    ("keys", "world_size", "name"),
    [
        ({}, 1, "one process"),
        ({}, 2, "DDP"),
        (FSDP, 2, "FSDP2"),
        ({**FSDP, "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}, 2, "FSDP2, LoRA"),
        ({"adapter": "qlora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}, 2, "DDP, Q-LoRA"),
        ({**FSDP, "dp_replicate_size": 2, "dp_shard_size": 4}, 8, "HSDP (2 replicas x 4 shards)"),
    ],
)
def test_strategies_have_their_usual_names(keys, world_size, name):
    assert strategy_name(resolve_mapping({**BASE, **keys}), world_size) == name


def test_a_replica_on_each_node_is_told_with_its_size_where_that_is_known():
    cfg = resolve_mapping({**BASE, "dp_shard_size": "node"})
    assert strategy_name(cfg, 8, 4) == "HSDP (2 replicas x 4 shards)"
    assert strategy_name(cfg, 8) == "HSDP (one replica a node)"


def test_what_resuming_does_is_told(tmp_path):
    run = RunDir(tmp_path)
    launch = resolve(LaunchOptions(), num_gpus=0)
    auto = resolve_mapping({**BASE, "auto_resume_from_checkpoints": True}, source="c.yaml")
    assert "no complete checkpoint yet" in describe(auto, launch, run)
    for step, complete in ((3, True), (7, True), (9, False)):
        run.checkpoint(step).mkdir(parents=True)
        if complete:
            (run.checkpoint(step) / "COMPLETE").write_text("{}")
    text = describe(auto, launch, run)
    assert "from step 7" in text and "c.yaml" in text and str(tmp_path) in text
    assert "starts at step 0" in describe(resolve_mapping(BASE), launch, run)
    for keys in ({}, {"resume_from_checkpoint": "elsewhere/step-1"}):
        assert "from step 7" in describe(resolve_mapping({**BASE, **keys}), replace(launch, num_restarts=1), run)


@pytest.mark.parametrize(("ranks", "told"), [(range(8, 16), "ranks 8 to 15"), (range(1, 2), "rank 1"), (None, "its")])
def test_the_terminal_of_another_node_says_what_it_runs_and_how_that_ended(ranks, told):
    node = resolve(LaunchOptions(nnodes="2", node_rank=1, nproc_per_node=8, master_addr="a"), num_gpus=0)
    line = place_of_node(node, ranks, Path("out/logs/node-1"), {})
    assert line.startswith(f"node 1:     runs {told}") and "out/logs/node-1; node 0's terminal" in line
    assert end_of_node(node, 0, {}) == "node 1:     its ranks are done"
    assert "saved a checkpoint" in end_of_node(node, 75, {}) and end_of_node(node, 1, {}) == ""
    # Started from one place, node 0 tells it for all; and on node 0 itself all is seen.
    assert place_of_node(node, ranks, Path("out"), {ONE_VOICE: "1"}) == end_of_node(node, 0, {ONE_VOICE: "1"}) == ""
    first = resolve(LaunchOptions(nnodes="2", node_rank=0, nproc_per_node=8, master_addr="a"), num_gpus=0)
    assert place_of_node(first, range(8), Path("out"), {}) == end_of_node(first, 0, {}) == ""
