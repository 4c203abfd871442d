"""`allranks bench-scaling` from one node, on nodes with links of their own: its numbers, and what it leaves."""

import json
import sys
import time

import pytest

from allranks.cluster.timed import TIMED
from allranks.exit_codes import PREEMPTED
from allranks.observe import RunDir, read_events
from tests.cluster.conftest import ENVIRONMENT
from tests.cluster.training import make_training
from tests.patience import TIMEOUT_SECONDS

LINK_BYTES = 100e6 / 8
LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 16, "lora_target_linear": True}


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_run_that_is_only_timed_saves_nothing_however_it_ends(start_forked, tmp_path, monkeypatch, is_stopped):
    monkeypatch.setitem(ENVIRONMENT, TIMED, "1")
    keys = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5000 if is_stopped else 5}
    ranks = start_forked(output_dir=tmp_path / "run", **LORA, **keys)
    run = RunDir(tmp_path / "run")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while is_stopped and not any(event.kind == "step" for event in read_events(run.events(0))):
        assert ranks.is_running() and time.monotonic() < deadline, ranks.output.read_text()
        time.sleep(0.05)
    if is_stopped:
        ranks.processes[0].terminate()
    assert ranks.wait(TIMEOUT_SECONDS) == (PREEMPTED if is_stopped else 0), ranks.output.read_text()
    assert not run.checkpoints.exists() or not list(run.checkpoints.iterdir())
    assert not (run.path / "adapter").exists() and "nothing is saved" in ranks.output.read_text()


@pytest.mark.thorough
def test_two_nodes_are_timed_beside_one_and_nothing_is_left(lab, base_config):
    training = make_training(lab, "scaling", base_config, **LORA, val_set_size=0.1, save_strategy="epoch")
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
