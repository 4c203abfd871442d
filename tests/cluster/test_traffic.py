"""The bytes that a step is said to send between nodes, beside those that the kernel saw leave."""

import json
import sys
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.training import make_training

REPOSITORY = Path(__file__).parents[2]
CASES = {
    "ddp": {},
    "ddp bf16": {"ddp_comm_hook": "bf16"},
    "fsdp": {"fsdp_version": 2},
    "hsdp": {"dp_shard_size": "node", "ddp_timeout": 77},
}
HEADERS = 1.12
"""Ethernet, IP and TCP headers, acknowledgements of what comes in, gloo's own: at most so much more than the data."""
MEET = ("--master-addr", "node0", "--master-port", "29551", "--nnodes", "2", "--nproc-per-node", "2")


@pytest.mark.thorough
def test_counted_bytes_are_those_on_the_wire(lab: Lab, base_config: dict) -> None:
    training = make_training(lab, "traffic", base_config)
    folder = training.config.parent
    programs = []
    for rank in (0, 1):
        told = (folder / "model", folder / f"{rank}.json", json.dumps(CASES))
        program = ("-m", "tests.cluster.traffic_on_the_wire", *map(str, told))
        command = (sys.executable, "-m", "torch.distributed.run", *MEET, "--node-rank", str(rank), *program)
        programs.append(lab.node(rank).popen(command, cwd=str(REPOSITORY)))
    training.finish(programs)
    for rank in (0, 1):
        results = json.loads((folder / f"{rank}.json").read_text())
        ratios = {case: result["on the wire"] / result["counted"] for case, result in results.items()}
        assert ratios.keys() == CASES.keys() and all(1 <= ratio < HEADERS for ratio in ratios.values()), ratios
        # DDP's ring of 4 sends 3/2 of the gradients out of a node, HSDP's two rings of 2 send 1, once for both batches.
        counted = {case: result["counted"] / results["ddp"]["counted"] for case, result in results.items()}
        assert counted["ddp bf16"] == pytest.approx(1 / 2, rel=0.01)
        assert counted["hsdp"] == pytest.approx(2 / 3, rel=0.01)
        # A replica lies inside a node, and its groups wait as long as all others.
        assert results["hsdp"]["nodes of the shards"] == [rank, rank]
        assert results["hsdp"]["time-outs"] == [77]
