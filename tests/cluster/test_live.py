"""Ranks that hang in a real run: who the others wait for is named on every node, and the run ends, without a human.

The fault is put into one rank by a `sitecustomize` that its node alone has on its path.
"""

import json
import sys
from pathlib import Path

import pytest

from allranks.live.from_events import table_of
from tests.cluster.lab import Lab
from tests.cluster.training import make_training

TRAIN = (sys.executable, "-m", "allranks", "train", "c.yaml", "--nnodes", 2, "--master-addr", "node0")
HANG_SECONDS = 10
INJECTED = """
import os, sys, threading, time

def spoil():
    while not hasattr(sys.modules.get("allranks.train.stats"), "StatsReader"):
        time.sleep(0.02)
    reader = sys.modules["allranks.train.stats"].StatsReader
    push = reader.push
    def spoilt(self, step, *args, **kwargs):
        if step == 4:
            threading.Event().wait()  # as in a data loader, on a lock or on a dead mount
        return push(self, step, *args, **kwargs)
    reader.push = spoilt

if os.environ.get("RANK"):
    threading.Thread(target=spoil, daemon=True).start()
"""


def test_the_rank_that_does_not_come_is_named_on_every_node_while_the_others_wait(
    lab: Lab, base_config: dict, request: pytest.FixtureRequest
) -> None:
    keys = {"max_steps": 1000, "num_epochs": 1000, "hang_timeout": {"step": HANG_SECONDS}, "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **keys)
    folder = Path(training.config.parent, "fault")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(INJECTED)
    words = [(*TRAIN, "--master-port", 29541, "--node-rank", rank) for rank in range(2)]
    processes = [training.start(0, words[0]), training.start(1, words[1], PYTHONPATH=str(folder))]
    outputs = training.finish(processes, expect=[1, 1])
    for output in outputs:
        [said] = [line for line in output.splitlines() if line.startswith("error: ")]
        assert said.startswith("error: rank 1 "), output
        assert "never entered all_reduce" in said and "sitecustomize.py:11 in spoilt" in said, output
        assert "rank 1 (node 1, node1)" in output
    training.wait_until_gone()
    table = table_of(training.run)
    assert table.ended is not None
    assert table.ended.exit_code == 1
    assert table.ended.finding is not None
    assert (table.ended.finding.code, table.ended.finding.who.rank) == ("hang", 1), outputs[0]
    assert [node.host for node in table.nodes] == ["node0", "node1"]
    (diagnosis,) = training.run.path.glob("evidence/*/diagnosis.json")
    assert json.loads(diagnosis.read_text())["who"]["rank"] == 1
    assert len(list(diagnosis.parent.glob("node-*"))) == 2
