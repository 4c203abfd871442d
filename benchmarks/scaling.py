"""How a config scales over slow links, by `allranks bench-scaling`, beside what the plan expects of it.

    python -m benchmarks.scaling [--rates 1gbit,100mbit] [--nodes 1,2,3] [--steps 30] [--no-report]

Nodes of the lab (root; tests/cluster/lab), one rank on each, the cable of each limited by the kernel. They share this
machine's cores, so each gets a fixed part of one, the same at every size: else more nodes would compute more slowly,
which says nothing of a cluster.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks import report

RATES, NODES = "1gbit,100mbit", "1,2,3"
CORES = 0.4
"""Of a core, for each node: three nodes and what else this machine does fit on two."""
MOST_APART = 10.0
"""Points of efficiency between what is predicted and what is measured."""
KEYS: dict[str, Any] = {
    "sequence_len": 256,
    "sample_packing": True,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.001,
    "optimizer": "adamw_torch_fused",
    "save_strategy": "no",
}
TIMEOUT_SECONDS = 1500.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default=RATES, help="of each node's cable, in tc's words")
    parser.add_argument("--nodes", default=NODES, help="numbers of nodes (default 1,2,3)")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each (default 30)")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args(arguments)

    from tests.cluster.lab import missing

    if reason := missing():
        sys.exit(f"error: {reason}")
    load = os.getloadavg()[0]
    measured, num_parameters = _measure(options)
    lines = _table(measured)
    print("\n".join(lines))
    if not options.no_report:
        print(f"report: {_write_report(lines, measured, num_parameters, load, options)}")


def _measure(options: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], int]:
    """Rate -> what `bench-scaling --json` says."""
    from allranks.demo.files import write_files
    from tests.cluster.lab import Lab

    found = {}
    num_nodes = max(map(int, options.nodes.split(",")))
    with Lab(nodes=num_nodes) as lab:
        files = write_files(lab.shared / "files", num_records=400, vocab_size=1024, hidden_size=128, num_layers=4)
        data = [{"path": str(files.data), "type": "chat_template"}]
        keys = {"base_model": str(files.model), "datasets": data, "output_dir": str(lab.shared / "out"), **KEYS}
        config = lab.shared / "config.yaml"
        config.write_text(yaml.safe_dump({**keys, "dataset_prepared_path": str(lab.shared / "prepared")}))
        for number in range(num_nodes):
            lab.limit_cpu(number, CORES)
        for rate in options.rates.split(","):
            for number in range(num_nodes):
                lab.limit(number, rate)
            words = ["bench-scaling", config, "--nodes", options.nodes, "--steps", str(options.steps), "--json"]
            words += ["--hosts", f"node[0-{num_nodes - 1}]", "--link", rate]
            done = lab.node(0).run(
                [sys.executable, "-m", "allranks", *words],
                env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                cwd=str(lab.shared),
                timeout=TIMEOUT_SECONDS,
            )
            print(done.stderr, file=sys.stderr)
            told = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if done.returncode or not told:
                sys.exit(f"error: {rate}: exit code {done.returncode}\n{done.stdout}")
            found[rate] = json.loads(told[-1])
        return found, files.num_parameters


def _table(measured: dict[str, dict[str, Any]]) -> list[str]:
    head = ["link", "nodes", "tokens/s", "s a step", "measured", "predicted", "apart, points"]
    head += ["lost to compute", "communication", "data", "stragglers", "MB sent by a node"]
    rows = []
    for rate, told in measured.items():
        for size in told["sizes"]:
            lost = [size[f"lost_to_{part}"] for part in ("compute", "communication", "data", "stragglers")]
            sent = size["node_sends_bytes"]
            spread = f"{size['seconds']:.3f} ({size['fastest']:.3f} to {size['slowest']:.3f})"
            efficiency, expected = size["efficiency"], size["planned_efficiency"]
            apart = 100 * (expected - efficiency)
            rows.append([rate, str(size["nodes"]), f"{size['tokens_per_second']:,.0f}", spread])
            rows[-1] += [f"{100 * efficiency:.1f} %", f"{100 * expected:.1f} %", f"{apart:+.1f}"]
            rows[-1] += [f"{100 * one:.1f}" if one is not None else "?" for one in lost]
            rows[-1].append(f"{sent / 1e6:.2f}" if sent is not None else "")
    return report.table(head, rows)


def _largest_difference(measured: dict[str, dict[str, Any]]) -> float:
    sizes = [size for told in measured.values() for size in told["sizes"]]
    return max(100 * abs(size["planned_efficiency"] - size["efficiency"]) for size in sizes)


def _write_report(
    table: list[str], measured: dict[str, dict[str, Any]], num_parameters: int, load: float, options: argparse.Namespace
) -> Path:
    facts = report.machine()
    today = report.today()
    apart = _largest_difference(measured)
    verdict = "within" if apart <= MOST_APART else "not within"
    lines = [
        f"# Scaling over slow links, measured and predicted, {today}",
        "",
        f"Nodes of the lab on this machine, one rank on each, gloo, DDP, {num_parameters / 1e6:.2f} M parameters in "
        f"float32; each rank keeps its batch of one block of {KEYS['sequence_len']} tokens. Each node has {CORES} of a "
        f"core, whatever the number of nodes, and a cable that the kernel limits. {options.steps} steps after 5, of "
        f"which the middle 80 % count. Load average before: {load:.1f}.",
        "",
        "Predicted is the measured step of one node, and what the gradients take on the link (`plan/overlap.py`), with "
        "nothing fitted to these runs. The lost points add up to what is missing to 100 %.",
        "",
        *table,
        f"At most {apart:.1f} points lie between prediction and measurement, {verdict} the {MOST_APART:g} that are "
        "asked for. What is lost to compute and stragglers, for which the plan has no place, is in the difference: "
        "other programs share this machine's caches and cores.",
        "",
        *report.settings("Config", KEYS),
        *report.settings("Machine", facts),
        f"Command: `python -m benchmarks.scaling --rates {options.rates} --nodes {options.nodes} "
        f"--steps {options.steps}`",
        "",
    ]
    part = report.part_of([options.rates, options.nodes], [RATES, NODES])
    return report.saved("scaling", f"{facts['cores used']}-cores", lines, part=part)


if __name__ == "__main__":
    main()
