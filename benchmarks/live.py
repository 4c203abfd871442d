"""What it costs that the ranks are watched while they train, and what they notice of a watcher in trouble.

    python -m benchmarks.live [--rounds 1] [--seconds 180] [--slot 1] [--only cost|table|faults] [--no-report]

The cost: two ranks that keep two cores busy, watched in every second slot of some seconds, and not watched in those
between. Neighbouring slots are compared: other work of the machine hits both alike; on a quiet machine one round, of
four minutes with its start, resolves a per cent. The table: what node 0 needs for 8 to 1,024 simulated ranks. The
faults: the same run left alone, with its watcher killed, stopped, without a disk and cut off from the other node. Root,
for the last two.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import live_faults, live_table, report
from benchmarks.live_cost import Turn, cost_of, measure_turns
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
    parser.add_argument("--seconds", type=float, default=180, help="of training in each (default 180)")
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
                turns = measure_turns(WORKLOAD, workload, Path(folder) / f"{number}", options.seconds, options.slot)
                rounds.append(turns)
                print(f"round {number}: {cost_of(turns).line()}", flush=True)
            lines += _cost_lines(rounds, options.slot)
        if options.only in (None, "table"):
            lines += live_table.measure()
        if options.only in (None, "faults"):
            lines += ["## A watcher in trouble", "", *live_faults.measure(WORKLOAD, workload, Path(folder) / "faults")]
    print("\n" + "\n".join(lines))
    if not options.no_report:
        print(f"report: {_write_report(lines, load, options.only or '')}")


def _cost_lines(rounds: list[list[Turn]], slot: float) -> list[str]:
    rows = [[str(number), *cost_of(turns).cells()] for number, turns in enumerate(rounds, 1)]
    together = cost_of([turn for turns in rounds for turn in turns])
    rows.append(["all", *together.cells()])
    header = ["round", "watched slots", "tokens/s, watched / not", "95 % interval", "launcher's CPU, watched", "not"]
    return [
        "## Cost",
        "",
        f"Slots of {slot:g} s, {statistics.median(turn.steps for turns in rounds for turn in turns):.0f} steps in the "
        "median one. The ratio is the median of each watched slot's to the mean of its two neighbours'; the interval "
        "is that of medians of slots drawn from these again. The launcher's CPU is of one core.",
        "",
        *report.table(header, rows),
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
