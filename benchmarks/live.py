"""What it costs that the ranks are watched while they train, and what they notice of a watcher in trouble.

    python -m benchmarks.live [--rounds 1] [--seconds 240] [--slot 1] [--only cost|table|faults] [--no-report]

The cost: two ranks that keep two cores busy, watched by turns not at all, as usual, and 5 and 20 times as much
(benchmarks/live_doses.py), a second each. Within each four of such slots that follow each other the tokens/s are
compared: other work of the machine hits all alike. Their slope over the doses is what the usual costs: on a quiet
machine one round, of five minutes with its start, resolves some tenths of a per cent. The table: what node 0 needs for
8 to 1,024 simulated ranks. The faults: the same run left alone, with its watcher killed, stopped, without a disk and
cut off from the other node. Root, for the last two.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import live_faults, live_table, report
from benchmarks.live_cost import Block, cpu_at, estimate, lost_speed, measure_blocks, speed_at, used_cpu
from benchmarks.live_doses import DOSES
from benchmarks.workload import Workload, write

WORKLOAD = Workload(
    name="llama-2m",
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=384,
    num_layers=4,
    median_tokens=50,
    sequence_len=128,
    blocks_per_step=1,
)
"""A step takes less than a tenth of a second, so that a slot has many."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="runs that are watched by turns (default 1)")
    parser.add_argument("--seconds", type=float, default=240, help="of training in each (default 240)")
    parser.add_argument("--slot", type=float, default=1, help="seconds of a slot (default 1)")
    parser.add_argument("--only", choices=("cost", "table", "faults"), help="one of these")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args(arguments)
    lines: list[str] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        workload = Path(folder) / "workload"
        write(WORKLOAD, workload)
        if options.only in (None, "cost"):
            rounds = []
            for number in range(1, options.rounds + 1):
                blocks = measure_blocks(WORKLOAD, workload, Path(folder) / f"{number}", options.seconds, options.slot)
                rounds.append(blocks)
                print(f"round {number}: {estimate(blocks, lost_speed).text(100)} % of the tokens/s", flush=True)
            lines += _cost_lines(rounds, options.slot)
        if options.only in (None, "table"):
            lines += live_table.measure()
        if options.only in (None, "faults"):
            lines += ["## A watcher in trouble", "", *live_faults.measure(WORKLOAD, workload, Path(folder) / "faults")]
    print("\n" + "\n".join(lines))
    if not options.no_report:
        print(f"report: {_write_report(lines, load, options.only or '')}")


def _cost_lines(rounds: list[list[Block]], slot: float) -> list[str]:
    every = [block for blocks in rounds for block in blocks]
    costs = [[f"round {number}", blocks] for number, blocks in enumerate(rounds, 1)] if len(rounds) > 1 else []
    cost_rows = [
        [
            name,
            str(len(blocks)),
            estimate(blocks, lost_speed).text(100, ".3f"),
            estimate(blocks, used_cpu).text(100, ".3f"),
        ]
        for name, blocks in [*costs, ["all", every]]
    ]
    dose_rows = [
        [str(dose), estimate(every, speed_at(dose)).text(form=".4f"), estimate(every, cpu_at(dose)).text(100)]
        for dose in DOSES
    ]
    cores = len(os.sched_getaffinity(0))
    steps = statistics.median(slot.steps for block in every for slot in block)
    return [
        "## Cost",
        "",
        f"Slots of {slot:g} s, {steps:.0f} steps in the median one; a block is one slot of each dose. The cost is the "
        "slope over the doses within a block, of the logarithm of the tokens/s and of the launcher's CPU time. Values "
        "are medians of blocks, in brackets where 95 % of such medians of blocks drawn from these again lie.",
        "",
        *report.table(
            ["", "blocks", "tokens/s that watching costs, %", "launcher's CPU for it, % of a core"], cost_rows
        ),
        f"The launcher's CPU alone is {estimate(every, used_cpu).text(100 / cores, '.3f')} % of the {cores} cores that "
        "the ranks keep busy; what the tokens/s lose beyond that are caches, and that all ranks wait for the one that "
        "gave way.",
        "",
        "Whether it grows as the dose does:",
        "",
        *report.table(["looks a second", "tokens/s, over those without", "launcher's CPU, % of a core"], dose_rows),
        "What ranks do for it themselves (an event a step, which is the record's, and the time of their own work) is "
        "done at all doses alike.",
        "",
    ]


def _write_report(lines: list[str], load: float, part: str) -> Path:
    facts = report.machine()
    today = report.today()
    hardware = report.hardware(facts)
    text = [
        f"# What watching the ranks costs, on {hardware}, {today}",
        "",
        f"Two ranks with a thread each: no core is left for the watcher. Load average before: {load:.2f}.",
        "",
        *lines,
        *report.settings("Machine", facts),
        f"Command: `python -m benchmarks.live {' '.join(sys.argv[1:])}`".rstrip("` ") + "`",
        "",
    ]
    return report.saved("live", hardware, text, part=part)


if __name__ == "__main__":
    main()
