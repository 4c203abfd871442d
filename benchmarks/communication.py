"""Bytes and seconds of a step over a slow link: the same model under every way of sending less.

    python -m benchmarks.communication [--rate 100mbit] [--steps 5] [--only DDP,FSDP2] [--no-report]

Two nodes of the lab (root; tests/cluster/lab), two ranks on each, the cable of each limited by the kernel. Bytes are
the kernel's, of the node's interface, headers included; they do not depend on this machine. Seconds are the link's as
long as it is slower than the machine's cores, which compute for all four ranks.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report

MICRO_BATCHES = 4
WARM_UP = 3
DOCUMENTS = (40, 24)
"""Tokens of the documents of a micro-batch: few, so that the link is what takes time."""

_SHARDED: dict[str, Any] = {"fsdp_version": 2}
CASES: dict[str, dict[str, Any]] = {
    "DDP": {},
    "DDP, gradients sent after every micro-batch": {"every_batch": True},
    "DDP, `ddp_comm_hook: bf16`": {"ddp_comm_hook": "bf16"},
    "DDP, `ddp_comm_hook: fp16`": {"ddp_comm_hook": "fp16"},
    "DDP, `ddp_comm_hook: power_sgd`": {
        "ddp_comm_hook": "power_sgd",
        "ddp_comm_state_option": {"start_powerSGD_iter": 2, "matrix_approximation_rank": 2},
    },
    "FSDP2": _SHARDED,
    "FSDP2, `reduce_dtype: bfloat16`": {**_SHARDED, "fsdp_config": {"reduce_dtype": "bfloat16"}},
    "FSDP2, `reshard_after_forward: false`": {**_SHARDED, "fsdp_config": {"reshard_after_forward": False}},
    "FSDP2, `sync_each_batch: true`": {**_SHARDED, "fsdp_config": {"sync_each_batch": True}},
    "HSDP, `dp_shard_size: node`": {"dp_shard_size": "node"},
    "HSDP, and `reduce_dtype: bfloat16`": {"dp_shard_size": "node", "fsdp_config": {"reduce_dtype": "bfloat16"}},
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="100mbit", help="of each node's cable, in tc's words (default 100mbit)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each case (default 5)")
    parser.add_argument("--only", help="cases whose name begins with one of these, separated by commas")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    parser.add_argument("--rank", nargs=2, metavar=("MODEL", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    cases = {name: keys for name, keys in CASES.items() if name.startswith(wanted)}
    if options.rank:
        _be_a_rank(*options.rank, cases, options.steps)
        return

    from tests.cluster.lab import missing

    if reason := missing():
        sys.exit(f"error: {reason}")
    load = os.getloadavg()[0]
    measured, num_parameters = _measure(options)
    lines = _table(measured)
    print("\n".join(lines))
    if not options.no_report:
        path = _write_report(lines, num_parameters, load, options)
        print(f"report: {path}")


def _measure(options: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], int]:
    """Of each case, as node 0's first rank saw it."""
    from allranks.demo.files import write_files
    from tests.cluster.lab import Lab

    with Lab(nodes=2) as lab:
        files = write_files(lab.shared / "files", num_records=1, vocab_size=1024, hidden_size=128, num_layers=4)
        for node in (0, 1):
            lab.limit(node, options.rate)
        meet = ["--master-addr", "node0", "--master-port", "29561", "--nnodes", "2", "--nproc-per-node", "2"]
        own = ["--steps", str(options.steps), *(["--only", options.only] if options.only else [])]
        processes = []
        for rank in (0, 1):
            out = lab.shared / f"{rank}.json"
            program = ["-m", "benchmarks.communication", "--rank", str(files.model), str(out), *own]
            command = [sys.executable, "-m", "torch.distributed.run", *meet, "--node-rank", str(rank), *program]
            processes.append(lab.node(rank).popen(command, cwd=str(Path(__file__).parents[1])))
        outputs = [process.communicate(timeout=900)[0] for process in processes]
        if any(process.returncode for process in processes):
            sys.exit("error: " + "\n".join(output[-9000:] for output in outputs))
        return json.loads((lab.shared / "0.json").read_text()), files.num_parameters


def _be_a_rank(model: str, out: str, cases: dict[str, dict[str, Any]], num_steps: int) -> None:
    import torch
    import torch.distributed as dist

    from allranks.cluster.identity import identify
    from allranks.config.load import resolve_mapping
    from allranks.model.build import build_model
    from allranks.model.placement import place
    from allranks.observe import EventLog, read_events
    from allranks.train import world
    from allranks.train.strategies import make_strategy
    from allranks.train.traffic import TrafficCounter
    from tests.tiny_models import flat_for, make_batch

    identity = identify(os.environ)
    world.join(identity, timeout_seconds=300, needs_group=True)
    nodes = world.nodes_of_ranks(identity)
    batches = [make_batch(identity.rank * MICRO_BATCHES + number, DOCUMENTS) for number in range(MICRO_BATCHES)]
    results = {}
    for number, (name, case) in enumerate(cases.items()):
        keys = {key: value for key, value in case.items() if key != "every_batch"}
        cfg = resolve_mapping(flat_for(Path(model), **keys))
        trained = build_model(cfg, place(cfg, torch.device("cpu"), identity.rank, identity.world_size, nodes))
        strategy = make_strategy(cfg, trained)
        events = Path(f"/tmp/{identity.rank}-{number}.jsonl")
        traffic = TrafficCounter(identity.rank, nodes, {WARM_UP}, EventLog(events, identity.rank), say=print)
        seconds, wire = [], 0
        for step in range(1, WARM_UP + num_steps + 1):
            dist.barrier()
            before, started = _bytes_sent(), time.perf_counter()
            traffic.begin(step)
            for index, batch in enumerate(batches):
                with strategy.micro_batch(last=index == MICRO_BATCHES - 1 or "every_batch" in case):
                    strategy.backward(trained.forward_loss(batch) * identity.world_size)
            strategy.step()
            dist.barrier()
            seconds.append(time.perf_counter() - started)
            traffic.end(step)
            if step > WARM_UP:
                wire += _bytes_sent() - before
        [event] = read_events(events)
        results[name] = {
            "seconds": seconds[WARM_UP:],
            "counted": event.node_sends_bytes[0],
            "wire": wire / num_steps,
        }
    if identity.local_rank == 0:
        Path(out).write_text(json.dumps(results))
    world.exit_rank(0, identity)


def _bytes_sent() -> int:
    return int(Path("/sys/class/net/eth0/statistics/tx_bytes").read_text())


def _table(measured: dict[str, dict[str, Any]]) -> list[str]:
    """Ratios are to the first case, the median of its seconds."""
    first = next(iter(measured.values()))
    base = statistics.median(first["seconds"])
    rows = ["| | sent by a node, MB a step | counted, MB | x bytes | s a step | x time |", "|---|---|---|---|---|---|"]
    for name, one in measured.items():
        cells = [
            f"{one['wire'] / 1e6:.2f}",
            f"{one['counted'] / 1e6:.2f}",
            f"{one['wire'] / first['wire']:.2f}",
            report.spread(one["seconds"]),
            report.spread([second / base for second in one["seconds"]]),
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return [*rows, ""]


def _write_report(table: list[str], num_parameters: int, load: float, options: argparse.Namespace) -> Path:
    facts = report.machine()
    today = report.today()
    lines = [
        f"# Less communication over {options.rate}, {today}",
        "",
        f"Two nodes of the lab with two ranks each on this machine, gloo, the cable of each node limited to "
        f"{options.rate}; {num_parameters / 1e6:.2f} M parameters in float32; a step is {MICRO_BATCHES} micro-batches "
        f"of {sum(DOCUMENTS)} tokens on every rank. {options.steps} steps after {WARM_UP}; cells are "
        "`median (min to max)` over steps, ratios are to the median of the first row. Load average before: "
        f"{load:.1f}.",
        "",
        "The bytes are those that the kernel counted on node 0's interface, headers included, and do not depend on the "
        "machine. The seconds are for the most part those of the link; on a busy machine its cores add to them.",
        "",
        *table,
        "gloo has no reduce-scatter: PyTorch reduces the whole gradient on every rank, so that FSDP2's gradients cost "
        "twice what they would with NCCL. PowerSGD is measured after it has begun (rank 2).",
        "",
        *report.settings("Cases", CASES),
        *report.settings("Machine", facts),
        f"Command: `python -m benchmarks.communication --rate {options.rate} --steps {options.steps}`",
        "",
    ]
    return report.saved("communication", options.rate, lines, part=options.only or "")


if __name__ == "__main__":
    main()
