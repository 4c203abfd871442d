"""How judging grows with the number of nodes: `python -m benchmarks.preflight`. Simulated nodes, no network.

Each number of nodes has a process of its own: it reads every node's report from JSON, judges all, and writes the table.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from allranks.cluster.node_report import NodeReport
from allranks.cluster.pairs import Unreached
from allranks.preflight.catalogue import CHECKS
from allranks.preflight.check import Pairs, Subject
from allranks.preflight.judge import judge
from allranks.preflight.table import table
from tests.simulated_nodes import healthy

NUM_NODES = (4, 64, 256, 1024)
LIMITS = {64: (15.0, None), 1024: (60.0, 200.0)}
"""Nodes -> the most seconds and MB that judging them may take."""


@dataclass(frozen=True)
class Measured:
    """Seconds of each part, and the greatest memory of the whole process in MB, `before_mb` of which it has empty."""

    num_nodes: int
    read_seconds: float
    judge_seconds: float
    table_seconds: float
    report_bytes: int
    before_mb: float
    peak_mb: float
    found: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.read_seconds + self.judge_seconds + self.table_seconds


def measure(num_nodes: int) -> Measured:
    """Nodes with 8 GPUs and 4 InfiniBand ports, of which one is to be found: nobody reaches it."""
    before = _peak_mb()
    cluster = healthy(random.Random(8), num_nodes, "infiniband", gpus_each=8)
    names, bad = cluster.nodes, num_nodes // 2
    read_seconds, report_bytes = 0.0, 0
    reports: dict[str, NodeReport | None] = {}
    while cluster.reports:  # a gatherer has each text once, not all of them beside the reports
        name, report = cluster.reports.popitem()
        text = json.dumps(report)
        report_bytes += len(text)
        started = time.perf_counter()
        reports[name] = NodeReport.from_message(json.loads(text))
        read_seconds += time.perf_counter() - started
    places = cluster.pairs.places if cluster.pairs else ()
    to = Unreached(bad, "10.20.0.10", 4711, "connect", "timed out")
    subject = Subject(
        reports={name: reports[name] for name in names},
        starting=names[0],
        wanted=cluster.wanted,
        must_match=cluster.must_match,
        network=cluster.network,
        pairs=Pairs(places, [(source, to) for source in range(num_nodes) if source != bad]),
        clocks=cluster.clocks,
    )
    started = time.perf_counter()
    judged = judge(subject)
    judge_seconds = time.perf_counter() - started
    started = time.perf_counter()
    table(judged)
    table_seconds = time.perf_counter() - started
    found = tuple(one.finding.code for one in judged.reported if one.state == "failed")
    return Measured(num_nodes, read_seconds, judge_seconds, table_seconds, report_bytes, before, _peak_mb(), found)


def _peak_mb() -> float:
    """Of this program alone: ru_maxrss also remembers the process that started it, until its exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main() -> int:
    print(f"{len(CHECKS)} checks; MB: the whole process, and what an empty one has")
    heads = ("nodes", 6), ("read s", 8), ("judge s", 8), ("table s", 8), ("in all s", 9), ("MB", 7), ("empty", 7)
    print(" ".join(f"{head:>{width}}" for head, width in (*heads, ("kB a node", 10))))
    too_much = False
    for num_nodes in NUM_NODES:
        command = [sys.executable, "-m", "benchmarks.preflight", str(num_nodes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        one = Measured(**{**json.loads(done.stdout), "found": ()})
        print(
            f"{one.num_nodes:>6} {one.read_seconds:>8.2f} {one.judge_seconds:>8.2f} {one.table_seconds:>8.2f} "
            f"{one.seconds:>9.2f} {one.peak_mb:>7.1f} {one.before_mb:>7.1f} "
            f"{one.report_bytes / one.num_nodes / 1000:>10.1f}",
            flush=True,
        )
        seconds, mb = LIMITS.get(num_nodes, (None, None))
        if (seconds is not None and one.seconds > seconds) or (mb is not None and one.peak_mb > mb):
            print(f"  more than {seconds} s or {mb} MB")
            too_much = True
    return int(too_much)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(asdict(measure(int(sys.argv[1])))))
    else:
        sys.exit(main())
