"""What each step of the speed pass is worth: the same run with one of them taken out at a time.

    python -m benchmarks.steps [--rounds 2] [--only NAME,NAME] [--no-report]

Part of `make bench`. Rounds and fresh processes as in benchmarks.cpu.
"""

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measure import Measurement, measure
from benchmarks.rounds import in_rounds
from benchmarks.workload import Workload

BASE = "base"

_ALL_LOGITS = {"without": "labels-only", "chunked_cross_entropy": False}

# Name on the command line -> what is taken out, keys that replace those of the run.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: ("nothing", {}),
    "chunks": ("chunks of the loss", {"chunked_cross_entropy": False}),
    "torch-loss": ("PyTorch's function in the chunks of the loss; ours", {"without": "torch-loss"}),
    "labels-only": ("and logits at labels only", _ALL_LOGITS),
    "sdpa": ("attention by documents; one mask (sdpa)", {"attn_implementation": "sdpa"}),
    "packing": ("packing; documents are padded", {"sample_packing": False, "pad_to_sequence_len": True}),
    "prefetch": ("making micro-batches ahead", {"without": "prefetch"}),
    "gc": ("garbage collected at set steps; whenever Python likes", {"without": "set-collections"}),
    "all": (
        "loss, attention and packing",
        _ALL_LOGITS | {"attn_implementation": "sdpa", "sample_packing": False, "pad_to_sequence_len": True},
    ),
    "compile": ("nothing, and torch_compile put in", {"torch_compile": True}),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often each variant runs (default 2)")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, separated by commas")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(VARIANTS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}; choose from {', '.join(VARIANTS)}")

    workload = Workload(warmup_steps=1, measured_steps=3)

    def measure_one(name: str, directory: Path, scratch: Path) -> Measurement:
        changes = dict(VARIANTS[name][1])
        if changes.get("sample_packing") is False:
            changes["micro_batch_size"] = workload.documents_per_step
        return measure("allranks", workload, directory, scratch, changes=changes)

    def shown(name: str, one: Measurement) -> str:
        return f"{VARIANTS[name][0]:50}{one.tokens_per_second:8.0f} tokens/s"

    rounds = in_rounds(workload, chosen, options.rounds, measure_one, shown)
    lines = _table(rounds, chosen)
    print("\n" + "\n".join(lines))
    if not options.no_report:
        print(f"report: {_write_report(workload, rounds, lines, chosen)}")


def _table(rounds: list[dict[str, Measurement]], chosen: list[str]) -> list[str]:
    rows = []
    for name in chosen:
        of_all = [measured[name] for measured in rounds]
        ratio = "1"
        if BASE in chosen and name != BASE:
            ratio = report.spread([one[name].tokens_per_second / one[BASE].tokens_per_second for one in rounds])
        rows.append(
            [
                VARIANTS[name][0],
                report.spread([one.tokens_per_second for one in of_all], ".0f"),
                ratio,
                f"{statistics.median(one.peak_memory_bytes for one in of_all) / 2**20:.0f}",
                report.spread([one.first_step_seconds for one in of_all]),
            ]
        )
    header = ["taken out", "real tokens/s", "x nothing taken out", "peak memory, MiB", "seconds to the first step"]
    return report.table(header, rows)


def _write_report(
    workload: Workload, rounds: list[dict[str, Measurement]], lines: list[str], chosen: list[str]
) -> Path:
    facts = report.machine()
    today = report.today()
    hardware = report.hardware(facts)
    text = [
        f"# What each step of the speed pass is worth, on {hardware}, {today}",
        "",
        f"{len(rounds)} rounds, interleaved; every run in a fresh process. Cells are `median (min to max)`; ratios are "
        "taken within a round. One thing is taken out at a time.",
        "",
        *lines,
        *report.raw(rounds, {name: VARIANTS[name][0] for name in chosen}),
        *report.settings("Workload", asdict(workload)),
        *report.settings("Machine", facts),
    ]
    return report.saved("steps", hardware, text, part=report.part_of(chosen, VARIANTS))


if __name__ == "__main__":
    main()
