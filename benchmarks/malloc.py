"""What glibc's settings are worth to FSDP2 on CPUs: peak memory of a rank, and tokens per second.

    python -m benchmarks.malloc [--rounds 2] [--ranks 2] [--only NAME,NAME] [--no-report]

FSDP gathers and frees each layer over and over. glibc raises by itself, up to 32 MiB, the size from which a block is
given back to the system when it is freed; what is smaller stays in the arena of the thread that made it.
Each setting trains the same model, one after the other in each round, in fresh processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.measure import allranks_config
from benchmarks.rounds import in_rounds
from benchmarks.workload import Workload

KIB, MIB = 2**10, 2**20
_MMAP, _TRIM, _ARENAS = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"
_HUGE = "THP_MEM_ALLOC_ENABLE"  # torch's own: it asks the kernel for huge pages under tensors of 2 MB and more


def _thresholds(num_bytes: int) -> dict[str, str]:
    return {_MMAP: str(num_bytes), _TRIM: str(num_bytes)}


def _tunables(**values: int) -> dict[str, str]:
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in values.items())}


# Name on the command line -> variables of every rank. The first is glibc's default, said so that allranks adds none.
VARIANTS: dict[str, dict[str, str]] = {
    "glibc": {_ARENAS: "0"},
    "128k": _thresholds(128 * KIB),
    "1m": _thresholds(MIB),
    "4m": _thresholds(4 * MIB),
    "16m": _thresholds(16 * MIB),
    "32m": _thresholds(32 * MIB),
    "16m-trim256m": {_MMAP: str(16 * MIB), _TRIM: str(256 * MIB)},
    "4m-trim256m": {_MMAP: str(4 * MIB), _TRIM: str(256 * MIB)},
    "trim": {_TRIM: str(MIB)},
    "arenas": {_ARENAS: "2"},
    "huge": {_HUGE: "1", _ARENAS: "0"},
    "16m-trim256m-huge": {_MMAP: str(16 * MIB), _TRIM: str(256 * MIB), _HUGE: "1"},
    "huge-glibc": _tunables(hugetlb=1),
    "16m-trim256m-huge-glibc": _tunables(hugetlb=1, mmap_threshold=16 * MIB, trim_threshold=256 * MIB),
    "huge-both": _tunables(hugetlb=1) | {_HUGE: "1"},
}


@dataclass(frozen=True)
class Measured:
    tokens_per_second: float  # of all ranks, over the steady steps
    cpu_seconds: float  # of the whole run, start included: it says more than a clock on a machine that others use
    peak_bytes: int  # of the largest rank


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often each setting runs (default 2)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of this machine (default 2)")
    parser.add_argument("--only", default=",".join(VARIANTS), help="settings, separated by commas")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(VARIANTS):
        parser.error(f"no such setting: {', '.join(sorted(unknown))}; choose from {', '.join(VARIANTS)}")

    workload = Workload(warmup_steps=2, measured_steps=6)

    def shown(name: str, one: Measured) -> str:
        speed = f"{one.tokens_per_second:8.0f} tokens/s{one.cpu_seconds:8.1f} s of CPU"
        return f"{name:10}{speed}{one.peak_bytes / MIB:8.0f} MiB"

    def measure_one(name: str, directory: Path, scratch: Path) -> Measured:
        return _run(workload, directory, scratch, name, options.ranks)

    rounds = in_rounds(workload, chosen, options.rounds, measure_one, shown)
    lines = _table(rounds, chosen)
    print("\n" + "\n".join(lines))
    if not options.no_report:
        print(f"report: {_write_report(workload, options.ranks, len(rounds), lines, report.part_of(chosen, VARIANTS))}")


def _run(workload: Workload, directory: Path, scratch: Path, name: str, num_ranks: int) -> Measured:
    scratch.mkdir(parents=True)
    config = allranks_config(workload, directory, scratch)
    config |= {"fsdp_version": 2, "micro_batch_size": max(1, workload.blocks_per_step // num_ranks)}
    (scratch / "config.yaml").write_text(json.dumps(config, indent=1))
    argv = [sys.executable, "-m", "allranks", "train", str(scratch / "config.yaml"), "--nproc-per-node", str(num_ranks)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **VARIANTS[name]}
    with (scratch / "output.log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment, cwd=scratch, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        said = (scratch / "output.log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"exit code {process.returncode}\n{said}")

    from allranks.observe import RunDir, read_events
    from allranks.observe.events import StepEvent

    events = [list(read_events(RunDir(scratch / "run").events(rank))) for rank in range(num_ranks)]
    steps = [event for event in events[0] if isinstance(event, StepEvent)][workload.warmup_steps :]
    return Measured(
        sum(event.tokens for event in steps) / sum(event.seconds for event in steps),
        usage.ru_utime + usage.ru_stime,
        max(event.memory_bytes for rank in events for event in rank if isinstance(event, StepEvent)),
    )


def _table(rounds: list[dict[str, Measured]], chosen: list[str]) -> list[str]:
    rows = []
    for name in chosen:
        of_all = [measured[name] for measured in rounds]
        variables = " ".join(f"{key}={value}" for key, value in VARIANTS[name].items() if value)
        ratio = report.spread([one[name].tokens_per_second / one[chosen[0]].tokens_per_second for one in rounds])
        rows.append(
            [
                variables or "nothing set",
                report.spread([one.tokens_per_second for one in of_all], ".0f"),
                ratio,
                report.spread([one.cpu_seconds for one in of_all], ".1f"),
                f"{statistics.median(one.peak_bytes for one in of_all) / MIB:.0f}",
            ]
        )
    return report.table(
        ["variables", "real tokens/s", "x the first row", "CPU seconds of the run", "memory of a rank, MiB"], rows
    )


def _write_report(workload: Workload, num_ranks: int, num_rounds: int, lines: list[str], part: str) -> Path:
    facts = report.machine()
    today = report.today()
    hardware = report.hardware(facts)
    text = [
        f"# glibc's settings under FSDP2 on {num_ranks} ranks, on {hardware}, {today}",
        "",
        f"{num_rounds} rounds, interleaved; every run in fresh processes. Cells are `median (min to max)`; ratios are "
        "taken within a round. Memory is what the largest rank held at the end of a step, at most.",
        "",
        *lines,
        *report.settings("Workload", asdict(workload)),
        *report.settings("Machine", facts),
    ]
    return report.saved("malloc", hardware, text, part=part)


if __name__ == "__main__":
    main()
