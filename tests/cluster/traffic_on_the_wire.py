"""A program for several nodes: what steps send by their count, and by the kernel's counter of the node's interface.

    torchrun … -m tests.cluster.traffic_on_the_wire MODEL OUT.json '{"case": {"key": …}, …}'

The first rank of each node writes, for each case, this node's bytes of the same steps by both, the nodes of the ranks
that share its shards, and the time-outs in seconds of what its mesh sent.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from allranks.cluster.identity import identify
from allranks.config.load import resolve_mapping
from allranks.model.build import build_model
from allranks.model.placement import place
from allranks.observe import EventLog, read_events
from allranks.train import world
from allranks.train.strategies import Strategy, make_strategy
from allranks.train.traffic import TrafficCounter
from tests.tiny_models import flat_for, make_batch

STEPS = 30
NUM_MICRO_BATCHES = 2


def main(model: Path, out: Path, cases: dict[str, dict[str, Any]]) -> None:
    identity = identify(os.environ)
    world.join(identity, timeout_seconds=60, needs_group=True)
    nodes = world.nodes_of_ranks(identity)
    results = {}
    for name, keys in cases.items():
        cfg = resolve_mapping(flat_for(model, **keys))
        placement = place(cfg, torch.device("cpu"), identity.rank, identity.world_size, nodes)
        trained = build_model(cfg, placement)
        strategy = make_strategy(cfg, trained)
        events = Path(f"/tmp/traffic-{identity.rank}-{name}.jsonl")
        traffic = TrafficCounter(identity.rank, nodes, {3}, EventLog(events, identity.rank), say=print)
        for number in (1, 2, 3):
            traffic.begin(number)
            step(trained, strategy, identity.world_size)
            traffic.end(number)
        [event] = read_events(events)
        before = bytes_on_the_wire()
        for _ in range(STEPS):
            step(trained, strategy, identity.world_size)
        sent = bytes_on_the_wire() - before
        results[name] = {
            "counted": STEPS * event.node_sends_bytes[nodes[identity.rank]],
            "on the wire": sent,
            "nodes of the shards": [nodes[rank] for rank in placement.mesh["shard"].mesh] if placement.mesh else [],
            "time-outs": timeouts_of_meshes(),
        }
    if identity.local_rank == 0:
        out.write_text(json.dumps(results))
    world.exit_rank(0, identity)


def step(trained: Any, strategy: Strategy, world_size: int) -> None:
    for index in range(NUM_MICRO_BATCHES):
        with strategy.micro_batch(last=index == NUM_MICRO_BATCHES - 1):
            strategy.backward(trained.forward_loss(make_batch(index)) * world_size)
    strategy.step()


def bytes_on_the_wire() -> int:
    """Sent by this node until now, headers included, when all ranks have come here."""
    dist.barrier()
    return int(Path("/sys/class/net/eth0/statistics/tx_bytes").read_text())


def timeouts_of_meshes() -> list[float]:
    notes = json.loads(torch._C._distributed_c10d._dump_fr_trace_json(True, False))["entries"]
    return sorted({note["timeout_ms"] / 1000 for note in notes if note["process_group"][1].startswith("mesh_")})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
