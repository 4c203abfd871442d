"""`allranks bench-scaling` from one node, on nodes with links of their own: its numbers, and what it leaves."""

import json
import sys

import pytest

from tests.cluster.training import make_training

LINK_BYTES = 100e6 / 8


@pytest.mark.thorough
def test_two_nodes_are_timed_beside_one_and_nothing_is_left(lab, base_config):
    keys = {"adapter": "lora", "lora_r": 16, "lora_alpha": 16, "lora_target_linear": True, "save_strategy": "epoch"}
    training = make_training(lab, "scaling", base_config, val_set_size=0.1, **keys)
    for node in (0, 1):
        lab.limit(node, "100mbit")
    words = ["bench-scaling", "c.yaml", "--nodes", "1,2", "--steps", "12", "--hosts", "node[0-1]", "--json"]
    command = [sys.executable, "-m", "allranks", *words, "--csv", "table.csv"]
    [output] = training.finish([training.start(0, command)])
    told = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    one, two = told["sizes"]
    assert [(size["nodes"], size["ranks"], size["ok"]) for size in (one, two)] == [(1, 1, True), (2, 2, True)]
    # Each rank keeps its batch, so two nodes read about twice as many tokens a step.
    assert two["tokens"] == pytest.approx(2 * one["tokens"], rel=0.1)
    assert one["efficiency"] == 1.0 and two["speedup"] == pytest.approx(2 * two["efficiency"], rel=1e-6)
    for size in (one, two):
        parts = sum(size[part] for part in ("compute", "stragglers", "data", "waiting"))
        assert parts == pytest.approx(size["seconds"]) and size["fastest"] <= size["seconds"] <= size["slowest"]
    lost = sum(two[f"lost_to_{part}"] for part in ("compute", "communication", "data", "stragglers"))
    assert lost == pytest.approx(1 - two["efficiency"])
    # What a node sends goes through its cable, which a step cannot outrun.
    assert one["node_sends_bytes"] is None and two["node_sends_bytes"] > 1000
    assert two["seconds"] > two["node_sends_bytes"] / LINK_BYTES
    assert (training.config.parent / "table.csv").read_text().count("\n") == 3
    left = [path.name for path in training.config.parent.iterdir()]
    assert sorted(left) == ["c.yaml", "model", "prepared", "table.csv", "train.jsonl"]
    training.wait_until_gone()
