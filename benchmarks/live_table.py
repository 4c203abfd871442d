"""Node 0's table of many ranks, for benchmarks.live: what it takes to keep it, once a second.

The nodes are simulated, and say what real ones say; node 0's own code takes it in: it reads the messages, looks for
hangs, stragglers and slow links, and writes live.json. Only the sockets are left out.
"""

import gc
import json
import random
import resource
import statistics
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

from allranks.launch.node.live_table import LiveTableKeeper
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.live.deadlines import Limits
from allranks.live.state import LinkState, NodeState, RankState
from allranks.observe import RunDir
from benchmarks import report

_ON_NODE = 8
_LOOKS, _WARM_UP = 20, 5


def measure(sizes: tuple[int, ...] = (8, 64, 512, 1024)) -> list[str]:
    """Lines of a report."""
    rows = [_row(size) for size in sizes]
    header = ["ranks", "nodes", "messages a second", "CPU a second", "longest look", "memory", "live.json"]
    return [
        "## Node 0's table",
        "",
        f"Simulated nodes of {_ON_NODE} ranks, each of which says once a second what its ranks do; the median of "
        f"{_LOOKS} seconds. CPU: of one core of node 0, writing included. Memory: what Python holds for the table at "
        "most while it is read, compared and written.",
        "",
        *report.table(header, rows),
        "",
    ]


def _row(num_ranks: int) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        run = RunDir(Path(folder))
        cpu, looks, num_bytes = _look(run, num_ranks)
        tracemalloc.start()
        _look(run, num_ranks, looks=5)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        size = run.live.stat().st_size
    return [
        f"{num_ranks:,}",
        f"{num_ranks // _ON_NODE}",
        f"{num_bytes / 1e3:,.0f} kB",
        f"{1e3 * statistics.median(cpu):.1f} ms",
        f"{1e3 * max(looks):.1f} ms",
        f"{peak / 1e6:.1f} MB",
        f"{size / 1e3:,.0f} kB",
    ]


def _look(run: RunDir, num_ranks: int, looks: int = _LOOKS + _WARM_UP) -> tuple[list[float], list[float], int]:
    """CPU seconds and seconds of each look, and bytes that came before one."""
    said: list[str] = []
    keeper = LiveTableKeeper(Peers(Node(0, run, "a run", "", [])), limits=Limits(), ends=True, say=said.append)
    cpu, seconds, num_bytes = [], [], 0
    for number in range(looks):
        messages = [json.dumps(_state(node, number).to_message()) for node in range(num_ranks // _ON_NODE)]
        num_bytes = sum(map(len, messages))
        gc.collect()
        began, used = time.perf_counter(), _cpu_seconds()
        keeper.look({node: NodeState.from_message(json.loads(one)) for node, one in enumerate(messages)})
        seconds.append(time.perf_counter() - began)
        while keeper._file._next is not None:  # a second is longer than it takes to write
            time.sleep(0.001)
        cpu.append(_cpu_seconds() - used)
    keeper.close()
    assert not said, said
    return cpu[_WARM_UP:], seconds[_WARM_UP:] or seconds, num_bytes


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _state(node: int, number: int) -> NodeState:
    """A healthy node after `number` seconds, in a step of one second each."""
    dice, now = random.Random(f"{node} {number}"), time.time()
    link = LinkState(
        local=f"10.0.0.{node}", peer=f"10.0.0.{node + 1}", acked_bytes=number * 10**8, carrying_seconds=0.2 * number
    )
    ranks = [
        replace(_RANK, rank=rank, pid=4000 + rank, step=number, since=now - 0.3, loss=dice.random())
        for rank in range(node * _ON_NODE, (node + 1) * _ON_NODE)
    ]
    links = tuple(replace(link, peer=f"10.0.1.{peer}") for peer in range(8))
    return NodeState(
        node=node, host=f"gpu{node}", t=now, ranks=tuple(ranks), bytes_in=1.2e9, bytes_out=1.2e9, links=links
    )


_RANK = RankState(
    rank=0,
    phase="train",
    tokens_per_second=187_234.5,
    step_seconds=1.0,
    data_seconds=0.01,
    compute_seconds=0.61,
    wait_seconds=0.39,
    memory_bytes=3_200_000_000,
    gpu_use=0.97,
    gpu_memory_bytes=61_000_000_000,
    cpu_use=1.01,
    process_state="R",
    output_age_seconds=1.0,
    events_age_seconds=0.3,
    num_steps=1200,
    median_step_seconds=1.0,
    median_compute_seconds=0.6,
    low_compute_seconds=0.59,
    mfu=0.413,
    attempt=1,
)
