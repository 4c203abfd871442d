"""How long it takes to reach all nodes, ask each for its account, run a command on each, and let them go.

`python -m benchmarks.fanout` prints a table for 1 to 1,024 nodes, which are all this machine: the time is what the
fan-out itself costs, on so many cores, without any network. `many_nodes` says what stands for ssh.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from allranks.cluster.fanout import fan_out
from allranks.cluster.nodes import parse_hosts
from allranks.cluster.transports import Transport
from benchmarks.many_nodes import be_patient, many_nodes

SIZES = (1, 4, 16, 64, 256, 1024)
ROUNDS = 3


def _peak_mib() -> float:
    """Of this program alone: ru_maxrss also remembers the process that started it, until its exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(num_nodes: int) -> dict[str, Any]:
    """Of one fan-out in a fresh process: seconds by phase, the head's most processes and peak memory."""
    with many_nodes() as env:
        command = [sys.executable, "-m", "benchmarks.fanout", "--head", str(num_nodes)]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


async def _head(num_nodes: int) -> dict[str, Any]:
    async def on_output(node: int, stream: str, lines: list[str]) -> None:
        said[node] = lines

    be_patient()
    said: dict[int, list[str]] = {}
    marks = [time.monotonic()]
    watch = asyncio.create_task(_most_children())
    # On a cluster 32 nodes open 32 connections each at once; here they share the cores, and would starve each other.
    transport = Transport("ssh", window=32 if num_nodes <= 64 else 2)
    async with fan_out(parse_hosts(f"node[0-{num_nodes - 1}]"), transport, on_output) as fanout:
        marks.append(time.monotonic())
        assert not fanout.unreachable, list(fanout.unreachable.items())[:3]
        accounts = await fanout.ask_all("account")
        marks.append(time.monotonic())
        codes = await asyncio.gather(*(fanout.run(node, ["echo", f"{node}"], {}, "/") for node in fanout.nodes))
        marks.append(time.monotonic())
    marks.append(time.monotonic())
    watch.cancel()
    assert len(accounts) == num_nodes and codes == [0] * num_nodes
    assert said == {node: [f"{node}"] for node in range(num_nodes)}
    seconds = [end - start for start, end in itertools.pairwise(marks)]
    phases = dict(zip(("connect", "account", "run", "close"), seconds, strict=True))
    return {
        "nodes": num_nodes,
        "seconds": phases,
        "processes": max(_seen),
        "peak_mib": _peak_mib(),
    }


_seen = [0]


async def _most_children() -> None:
    """Sampled: children of this process."""
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    while True:
        _seen.append(len(path.read_text().split()))
        await asyncio.sleep(0.02)


def report(rounds: list[list[dict[str, Any]]], load: float) -> str:
    """A table in Markdown; seconds are the medians over the rounds, with the spread of the sum. `load`: average of the
    machine before the first."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    lines = [
        f"# Fan-out over nodes that are all this machine ({machine}), {time.strftime('%Y-%m-%d')}",
        "",
        f"{len(rounds)} rounds; medians in seconds, the sum with its spread. Up to 64 nodes have a connection each,",
        "more are reached through a tree, 32 wide. All nodes share the cores of this machine, whose load average was",
        f"{load:.1f} before the first round.",
        "",
        "| nodes | connect | account | run | close | together | processes of the head | head's peak memory, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for runs in zip(*rounds, strict=True):
        middle = {phase: _median([run["seconds"][phase] for run in runs]) for phase in runs[0]["seconds"]}
        sums = sorted(sum(run["seconds"].values()) for run in runs)
        cells = [f"{seconds:.2f}" for seconds in middle.values()]
        cells.append(f"{_median(sums):.2f} ({sums[0]:.2f} to {sums[-1]:.2f})")
        cells.append(str(max(run["processes"] for run in runs)))
        cells.append(f"{max(run['peak_mib'] for run in runs):.0f}")
        lines.append(f"| {runs[0]['nodes']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--head", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.head:
        print(json.dumps(asyncio.run(_head(options.head))))
        return
    load = os.getloadavg()[0]
    rounds = [[measure(nodes) for nodes in options.nodes] for _ in range(options.rounds)]
    print(report(rounds, load))


if __name__ == "__main__":
    main()
