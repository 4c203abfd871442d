"""`make bench`: the same tiny model, data and settings through allranks and its peers, one after the other.

    python -m benchmarks.cpu [--rounds 2] [--only allranks,bare] [--no-report]

Every contestant runs in a fresh process, alone on the machine; the rounds are interleaved, so that a slow minute hits
all alike, and ratios are taken within a round.
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import report
from benchmarks.measure import Measurement
from benchmarks.rounds import run_rounds
from benchmarks.workload import Workload

CONTESTANTS = {
    "allranks": "allranks",
    "bare": "bare PyTorch loop, packed",
    "trainer": "transformers Trainer, padded",
    "trl": "TRL SFTTrainer, packed",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often each contestant runs (default 2)")
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="contestants, separated by commas")
    parser.add_argument("--steps", type=int, default=Workload.measured_steps, help="measured steps (default 8)")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(CONTESTANTS):
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}; choose from {', '.join(CONTESTANTS)}")

    workload = Workload(measured_steps=options.steps)
    names = {key: CONTESTANTS[key] for key in chosen}
    rounds = run_rounds(workload, names, options.rounds)
    baselines = [key for key in ("bare", "trainer", "trl") if key in names]
    speed = report.speed_table(rounds, names, baselines)
    start = report.start_table(rounds, names, baselines)
    print("\n" + "\n".join(speed) + "\nSeconds to the end of the first step, by phase:\n\n" + "\n".join(start))
    if not options.no_report:
        path = _write_report(workload, rounds, names, speed, start)
        print(f"report: {path}")


def _write_report(
    workload: Workload,
    rounds: list[dict[str, Measurement]],
    names: dict[str, str],
    speed: list[str],
    start: list[str],
) -> Path:
    facts = report.machine()
    today = report.today()
    hardware = report.hardware(facts)
    lines = [
        f"# {workload.name} on {hardware}, {today}",
        "",
        f"{len(rounds)} rounds, one contestant after the other in each, every one in a fresh process. Cells are "
        "`median (min to max)` over the rounds; ratios are taken within a round. Real tokens are those that are not "
        f"padding; rates are over {workload.measured_steps} optimizer steps after {workload.warmup_steps} to warm up.",
        "",
        "## Speed",
        "",
        *speed,
        "## Time to the first step",
        "",
        "Seconds from the start of the process to the end of its first optimizer step; phases are medians. Caches of "
        "data sets are empty at the start of each.",
        "",
        *start,
        "## Every measurement",
        "",
        *report.raw(rounds, names),
        *report.settings("Workload and settings", asdict(workload)),
        "float32; AdamW (fused), constant learning rate, no weight decay, gradient norm clipped at 1, one micro-batch "
        "a step, no gradient checkpointing, the loss read at every step, no checkpoints.",
        "",
        *report.settings("Machine", facts),
        f"Command: `python -m benchmarks.cpu {' '.join(sys.argv[1:])}`".rstrip("` ")
        + "`; threads: "
        + (
            f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else "torch's default"
        ),
        "",
    ]
    part = report.part_of(list(names), CONTESTANTS)
    return report.saved(report.slug(workload.name), hardware, lines, part=part)


if __name__ == "__main__":
    main()
