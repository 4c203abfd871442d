"""Peak memory and time of the loss, forward and backward: in one piece, in chunks, and in PyTorch's own chunks.

    python -m benchmarks.loss_memory [--labels 4096] [--vocabulary 32000,150000] [--hidden 64] [--rounds 3]

`torch.nn.functional.linear_cross_entropy` (torch 2.13) makes chunks of its own size, and of ours. Rounds are
interleaved, and ratios taken within a round; on CPU time is what the process computed, of all threads: other work on
the machine makes that longer by little. On CPU each is measured in a fresh process by the kernel's high-water mark of
resident memory, less what was there before and less the gradients that every way has to make; on a GPU
(`--device cuda`) by torch's own count.
Part of `make bench`. The full logits of 150,000 x 4,096 in one piece take about 8 GB.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import report
from benchmarks.parts.part import is_installed

if TYPE_CHECKING:
    import torch

WAYS = {
    "full": "in one piece (F.cross_entropy)",
    "chunked": "in chunks",
    "recomputed": "in chunks, computed twice",
    "torch": "PyTorch's chunks (F.linear_cross_entropy)",
    "torch-rows": "PyTorch's, in chunks of our size",
    "liger": "Liger's (liger-kernel)",
}


@dataclass(frozen=True)
class Case:
    """The sizes of an output layer and its labels, and where and in what type they are."""

    labels: int
    vocabulary: int
    hidden: int
    device: str
    dtype: str


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=4096, help="positions with a label (default 4096)")
    parser.add_argument("--vocabulary", default="32000,150000", help="sizes, separated by commas")
    parser.add_argument("--hidden", type=int, default=64, help="size of the hidden states (default 64)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default float32")
    parser.add_argument("--ways", default=",".join(WAYS), help="which, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default 3)")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        sizes = options.labels, int(options.vocabulary), options.hidden
        print(json.dumps(measured(options.one, Case(*sizes, options.device, options.dtype))))
        return

    rows = []
    chosen = options.ways.split(",")
    if unknown := set(chosen) - set(WAYS):
        parser.error(f"no such way: {', '.join(sorted(unknown))}; choose from {', '.join(WAYS)}")
    ways = [way for way in chosen if lack(way, options.device) is None]
    for vocabulary in map(int, options.vocabulary.split(",")):
        logits = options.labels * vocabulary * 4
        rounds: list[dict[str, tuple[int, float]]] = []
        for number in range(options.rounds):
            # Each round begins with another: nobody is always the one after the same neighbour's heat.
            order = [*ways[number % len(ways) :], *ways[: number % len(ways)]]
            found = {}
            for way in order:
                found[way] = _in_a_process(way, vocabulary, options)
                told = f"{found[way][0] / 1e9:.2f} GB, {found[way][1]:.2f} s"
                print(f"round {number + 1}, {vocabulary:,}: {WAYS[way]}: {told}", flush=True)
            rounds.append(found)
        for way in ways:
            peaks = [one[way][0] for one in rounds]
            cells = [f"{logits / 1e9:.2f}", f"{statistics.median(peaks) / 1e9:.2f}"]
            cells += [f"{statistics.median(peaks) / logits:.1%}", report.spread([one[way][1] for one in rounds])]
            ratios = [one[way][1] / one["chunked"][1] for one in rounds] if "chunked" in ways else []
            cells += [report.spread(ratios) if ratios else ""]
            rows.append([f"{vocabulary:,}", WAYS[way], *cells])
            print(" | ".join(rows[-1]), flush=True)
    header = ["vocabulary", "loss", "full float32 logits, GB", "peak, GB", "share of full logits"]
    header += ["CPU seconds" if options.device == "cpu" else "seconds", "x in chunks"]
    lines = report.table(header, rows)
    if not options.no_report:
        print(f"report: {_write_report(options, lines)}")


def lack(way: str, device: str) -> str | None:
    """Why a way cannot be had here; None if it can."""
    import torch

    if way.startswith("torch") and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return f"torch {torch.__version__} has no linear_cross_entropy that makes chunks"
    if way == "liger" and (device != "cuda" or not is_installed("liger_kernel")):
        return "liger-kernel runs on CUDA only" if device != "cuda" else "liger-kernel is not installed"
    return None


def _in_a_process(way: str, vocabulary: int, options: argparse.Namespace) -> tuple[int, float]:
    argv = [sys.executable, "-m", "benchmarks.loss_memory", "--one", way, "--vocabulary", str(vocabulary)]
    for key in ("labels", "hidden", "device", "dtype"):
        argv += [f"--{key}", str(getattr(options, key))]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"error: {WAYS[way]}: exit code {run.returncode}\n{run.stderr[-2000:]}")
    peak, seconds = json.loads(run.stdout)
    return peak, seconds


def inputs(case: Case) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """An output layer, hidden states that want a gradient, and labels."""
    import torch

    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    layer = torch.nn.Linear(case.hidden, case.vocabulary, bias=False, device=device, dtype=dtype)
    hidden = torch.randn(case.labels, case.hidden, device=device, dtype=dtype, requires_grad=True)
    return layer, hidden, torch.randint(0, case.vocabulary, (case.labels,), device=device)


def loss_by(way: str, layer: torch.nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of cross entropy over `labels`, made that way."""
    import torch
    import torch.nn.functional as F

    from allranks.model.chunked import (
        RECOMPUTED_COPIES,
        linear_cross_entropy,
        module_cross_entropy,
        rows_of_a_chunk,
    )

    copies = RECOMPUTED_COPIES if way == "recomputed" else 1
    rows = rows_of_a_chunk(len(labels), layer.out_features, None, copies=copies)
    if way == "full":
        return F.cross_entropy(layer(hidden).float(), labels, reduction="sum")
    if way == "chunked":
        return linear_cross_entropy(hidden, layer.weight, None, labels, rows=rows)
    if way.startswith("torch"):
        how = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows if way == "torch-rows" else None)
        return F.linear_cross_entropy(hidden, layer.weight, labels, reduction="sum", options=how)
    if way == "liger":
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        made = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
        return made(layer.weight, hidden, labels)
    return module_cross_entropy(layer, hidden, labels, rows=rows)


def measured(way: str, case: Case, repeats: int = 1) -> tuple[int, float]:
    """Peak bytes beyond inputs and gradients, and seconds (the median), of one forward and backward pass."""
    import torch

    layer, hidden, labels = inputs(case)
    on_gpu = case.device == "cuda"

    def run(count: int) -> None:
        (loss_by(way, layer, hidden[:count], labels[:count]) / count).backward()
        hidden.grad = layer.weight.grad = None
        if on_gpu:
            torch.cuda.synchronize()

    run(min(16, case.labels))  # libraries allocate at their first call
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in (hidden, layer.weight))
    if on_gpu:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    clock = time.perf_counter if on_gpu else time.process_time
    times = []
    for _ in range(repeats):
        started = clock()
        run(case.labels)
        times.append(clock() - started)
    peak = torch.cuda.max_memory_allocated() if on_gpu else _resident("VmHWM")
    return peak - before - gradients, statistics.median(times)


def _resident(name: str) -> int:
    found = re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _write_report(options: argparse.Namespace, lines: list[str]) -> Path:
    today = datetime.date.today().isoformat()
    facts = report.machine()
    settings = {key: getattr(options, key) for key in ("labels", "hidden", "device", "dtype", "rounds")}
    settings["threads"] = os.environ.get("OMP_NUM_THREADS", "all")
    path = (
        Path(__file__).parent / "reports" / f"loss-memory_{options.device}_{options.dtype}_{options.hidden}_{today}.md"
    )
    text = [
        f"# Peak memory of the loss, {options.labels} labels, {options.dtype}, {today}",
        "",
        "One forward and backward pass of the output layer and the loss, each way in a fresh process; peak beyond the "
        "inputs and the gradients of hidden states and weight, which every way makes. Rounds are interleaved; cells "
        "are `median (min to max)`, memory the median; ratios are taken within a round. On CPU time is CPU seconds of "
        "the process, all threads together: the machine may have had other work.",
        "",
        *lines,
        *report.settings("Settings", settings),
        *report.settings("Machine", facts),
    ]
    path.write_text("\n".join(text))
    return path


if __name__ == "__main__":
    main()
