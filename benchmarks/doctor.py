"""How long `allranks doctor` takes for 1 GB of interleaved logs of 64 ranks, and how much memory it has.

    python -m benchmarks.doctor [--bytes 1e9] [--no-report]

The log is written to a temporary file: lines of progress, NCCL's and Python's, of 64 ranks; near its end rank 37 runs
out of memory, and all others' watchdogs follow. CPU time is of the answering process: other work on the machine makes
it longer by little.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report

NUM_RANKS, FAILING = 64, 37
_AIMS = "aims: 20 s and 500 MB for 1 GB"
_LINES = (
    "[rank{r}]: {{'loss': {x:.4f}, 'grad_norm': {y:.3f}, 'learning_rate': 2e-05, 'epoch': {x:.2f}}}",
    "[rank{r}]: [2026-11-29 10:{m:02}:{s:02},123] [INFO] [trainer.py:{s}] [RANK:{r}] step {n} tokens/s {y:.1f}",
    "node{h}:{p}:{q} [{d}] NCCL INFO Channel {s:02}/0 : {r}[{d}] -> {m}[{d}] [send] via NET/IB/{d}/GDRDMA",
    "[rank{r}]: 2026-11-29 10:{m:02}:{s:02},456 - INFO - datasets - batch {n} of shard {s}: {m} documents, {q} tokens",
    "[rank{r}]: /usr/lib/python3.11/site-packages/torch/utils/checkpoint.py:87: UserWarning: none requires a gradient",
)
_OUT_OF_MEMORY = """[rank37]: Traceback (most recent call last):
[rank37]:   File "/home/user/train.py", line 88, in step
[rank37]:     loss.backward()
[rank37]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 5 has a total of 79 GiB
"""
_WATCHDOG = (
    "[rank{r}]:[E1129 11:20:44.903881913 ProcessGroupNCCL.cpp:616] [Rank {r}] Watchdog caught collective operation "
    "timeout: WorkNCCL(SeqNum=808, OpType=ALLREDUCE, NumelIn=9801523, NumelOut=9801523, Timeout(ms)=600000) ran for "
    "600020 milliseconds before timing out."
)


def write_log(path: Path, num_bytes: int) -> None:
    """A log of that size. Blocks of lines are repeated: what is read does not know that."""
    chance = random.Random(0)
    block, size = [], 0
    while size < 8_000_000:
        rank = chance.randrange(NUM_RANKS)
        line = chance.choice(_LINES).format(
            r=rank,
            x=chance.random() * 3,
            y=chance.random() * 900,
            m=chance.randrange(60),
            s=chance.randrange(60),
            n=chance.randrange(10**6),
            h=rank // 8,
            d=rank % 8,
            p=chance.randrange(10**6),
            q=chance.randrange(10**6),
        )
        block.append(line)
        size += len(line) + 1
    text = ("\n".join(block) + "\n").encode()
    with path.open("wb") as file:
        for _ in range(max(1, num_bytes // len(text))):
            file.write(text)
        file.write(_OUT_OF_MEMORY.encode())
        for rank in range(NUM_RANKS):
            if rank != FAILING:
                file.write((_WATCHDOG.format(r=rank) + "\n").encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, default=1e9, help="of the log (default 1e9)")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "all-ranks.log"
        write_log(log, int(options.bytes))
        size = log.stat().st_size
        load = os.getloadavg()[0]
        began = time.monotonic()
        answer = subprocess.run(
            [sys.executable, "-m", "allranks", "doctor", str(log)], capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    memory = used.ru_maxrss * 1024
    print(answer.stdout[:2000], answer.stderr[:2000], sep="")
    rate = f"{seconds:.1f} s ({size / 1e6 / seconds:.0f} MB/s), of the processor {cpu:.1f} s"
    print(f"{size / 1e9:.2f} GB, {NUM_RANKS} ranks: {rate}, {memory / 1e6:.0f} MB ({_AIMS})")
    is_right = f"rank {FAILING}" in answer.stdout
    if not options.no_report:
        figures = [
            ("the log", f"{size / 1e9:.2f} GB, {NUM_RANKS} ranks"),
            ("to the answer", f"{seconds:.1f} s ({size / 1e6 / seconds:.0f} MB/s)"),
            ("CPU time of it", f"{cpu:.1f} s ({size / 1e6 / cpu:.0f} MB/s)"),
            ("most memory", f"{memory / 1e6:.0f} MB"),
            ("load average before", f"{load:.1f}"),
            ("names the failing rank", "yes" if is_right else "no"),
        ]
        print(f"report: {_write_report(figures)}")
    return 0 if is_right else 1


def _write_report(figures: list[tuple[str, str]]) -> Path:
    facts, today = report.machine(), report.today()
    hardware = report.hardware(facts)
    lines = [
        f"# A large log, read by the doctor, on {hardware}, {today}",
        "",
        f"`python -m benchmarks.doctor {' '.join(sys.argv[1:])}".rstrip() + f"`; {_AIMS}.",
        "",
        *report.table(["", ""], [list(row) for row in figures]),
        *report.settings("Machine", facts),
    ]
    return report.saved("doctor", hardware, lines)


if __name__ == "__main__":
    sys.exit(main())
