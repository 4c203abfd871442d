"""`make bench-axolotl`: allranks beside axolotl, on the same model, data and settings, both packed, on the CPU.

    python -m benchmarks.axolotl [--rounds 2] [--no-report]

axolotl is installed in `.venv-axolotl`, beside our own environment, because it fixes other versions of everything. A
plugin of its own kind writes down the moments; it is started without a launcher in between, its quickest way.
"""

import argparse
import subprocess
from dataclasses import asdict
from pathlib import Path

from benchmarks import report
from benchmarks.measure import AXOLOTL, Measurement
from benchmarks.rounds import run_rounds
from benchmarks.workload import Workload

NAMES = {"allranks": "allranks", "axolotl": "axolotl"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often each runs (default 2)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps (default 5)")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args(arguments)
    if not AXOLOTL.exists():
        parser.exit(2, f"error: {AXOLOTL} is missing: run `make bench-axolotl`, which installs it (4.3 GB, minutes)\n")

    workload = Workload(measured_steps=options.steps, warmup_steps=2)
    rounds = run_rounds(workload, NAMES, options.rounds)
    speed = report.speed_table(rounds, NAMES, ["axolotl"])
    start = report.start_table(rounds, NAMES, ["axolotl"])
    print("\n" + "\n".join([*speed, *start]))
    if not options.no_report:
        print(f"report: {_write_report(workload, rounds, speed, start)}")


def _write_report(workload: Workload, rounds: list[dict[str, Measurement]], speed: list[str], start: list[str]) -> Path:
    facts = report.machine()
    today = report.today()
    hardware = report.hardware(facts)
    text = [
        f"# {workload.name} beside axolotl on {hardware}, {today}",
        "",
        f"{len(rounds)} rounds, taking turns; every run in a fresh process with empty caches. Cells are "
        "`median (min to max)`; ratios are taken within a round. Rates count real tokens, over "
        f"{workload.measured_steps} steps after {workload.warmup_steps} to warm up; times count from the command.",
        "",
        "Both: float32, AdamW (fused), packed rows of documents that do not see each other, four blocks a step. "
        "axolotl runs with `attn_implementation: sdpa` (its FlashAttention needs a GPU) and `--launcher python`, as "
        "installed in its own environment:",
        "",
        "```",
        *_versions(),
        "```",
        "",
        "## Speed",
        "",
        *speed,
        "## Time to the first step, seconds",
        "",
        *start,
        *report.raw(rounds, NAMES),
        *report.settings("Workload", asdict(workload)),
        *report.settings("Machine", facts),
        "Command: `make bench-axolotl`",
        "",
    ]
    return report.saved("axolotl", hardware, text)


def _versions() -> list[str]:
    """What axolotl's environment holds of the packages that matter."""
    program = (
        "from importlib.metadata import version\n"
        "for name in ('axolotl', 'torch', 'transformers', 'accelerate', 'datasets', 'numpy'):\n"
        "    print(name, version(name))"
    )
    return subprocess.check_output([AXOLOTL.with_name("python"), "-c", program], text=True).splitlines()


if __name__ == "__main__":
    main()
