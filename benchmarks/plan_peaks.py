"""What allranks.plan predicts of memory, in closed form and traced, beside what real ranks of this CPU allocate.

    python -m benchmarks.plan_peaks                      five models, each strategy: half an hour
    python -m benchmarks.plan_peaks --only FSDP2         cases whose name has this word
    python -m benchmarks.plan_peaks --no-trace           without the traced ones, in half of the time

Each case builds a model, and takes two steps on rows of random tokens, with the engine's own code. What counts is the
allocator's peak: PyTorch's profiler writes down each allocation. It does not see what gloo's threads free when they let
go of a tensor last; so each wait for a collective is followed by a pause, in which they do.
"""

import argparse
import gc
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allranks.errors import ConfigError
from allranks.trace.asked import OPTIMIZERS, Asked, refuse, traced_keys
from allranks.trace.child import peaks
from allranks.trace.layers import largest
from benchmarks.peak_cases import Case, cases, write_models

_PAUSE_SECONDS = 0.1


def measured(case: Case, folder: Path, rank: int) -> int:
    """Bytes at the peak of this rank."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from allranks.model.build import build_model
    from allranks.model.placement import place
    from allranks.train.strategies import make_strategy

    cfg = case.config(folder)
    tokens, accumulated = cfg.data.sequence_len, cfg.optimizer.gradient_accumulation_steps
    placement = place(cfg, torch.device("cpu"), rank, case.num_ranks)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model = build_model(cfg, placement)
        strategy = make_strategy(cfg, model, num_micro_batches=accumulated)
        model.module.train()
        for _ in range(2):
            for index in range(accumulated):
                with strategy.micro_batch(last=index == accumulated - 1):
                    loss = model.forward_loss(random_rows(1, tokens)) / tokens
                    strategy.backward(loss)
                del loss
            strategy.step()
        if case.evaluates:
            model.module.eval()
            with torch.no_grad():
                model.forward_loss(random_rows(cfg.evaluation.eval_batch_size or 1, tokens))
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def random_rows(num_rows: int, tokens: int) -> Any:
    """A micro-batch of documents of random tokens, which all but their last have a label."""
    import torch

    from allranks.model.batch import TorchBatch

    ids = torch.randint(1, 4096, (1, num_rows * tokens))
    labelled = torch.arange(num_rows * tokens).view(num_rows, tokens)[:, :-1].flatten()
    positions = torch.arange(tokens).repeat(num_rows)[None]
    lengths = (tokens,) * num_rows
    return TorchBatch(ids, positions, lengths, labelled, ids[0, labelled + 1], num_rows * tokens, lengths)


def traced(case: Case, folder: Path) -> float | None:
    """Bytes of rank 0 when it holds most; None for what cannot be traced."""
    cfg, model = case.config(folder), case.described(folder)
    if case.evaluates or cfg.optimizer.optimizer not in OPTIMIZERS:
        return None  # two steps of training are what is traced, without the state of libraries' optimizers
    try:
        refuse(cfg, case.num_ranks, case.num_ranks)
    except ConfigError:
        return None
    size = cfg.optimizer.micro_batch_size
    asked = Asked(
        keys=traced_keys(cfg, micro_batch_size=size, on_cpu=True),
        model=model,
        num_ranks=case.num_ranks,
        ranks_per_node=case.num_ranks,
        num_micro_batches=cfg.optimizer.gradient_accumulation_steps,
        lengths=(cfg.data.sequence_len,) * size,
        labelled=1.0,
        on_cpu=True,
        every_layer=True,
    )
    return float(sum(largest(peaks(asked, model)).values()))


def _rank(rank: int, num_ranks: int, port: int, wanted: list[Case], folder: Path, answers: Any) -> None:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import Work

    wait = Work.wait

    def wait_and_pause(*given: Any, **named: Any) -> Any:
        waited = wait(*given, **named)
        time.sleep(_PAUSE_SECONDS)
        return waited

    Work.wait = wait_and_pause
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks)
    for case in wanted:
        peak = measured(case, folder, rank)
        gc.collect()
        if rank == 0:
            answers.put((case, peak))
        dist.barrier()
    answers.close()
    answers.join_thread()
    os._exit(0)  # gloo's threads may not end


def _measure(wanted: list[Case], folder: Path) -> Iterator[tuple[Case, int]]:
    """Cases of one number of ranks, in the same processes."""
    if not wanted:
        return
    num_ranks = wanted[0].num_ranks
    context = multiprocessing.get_context("spawn")
    answers, port = context.Queue(), random.randint(20_000, 40_000)
    ranks = [
        context.Process(target=_rank, args=(rank, num_ranks, port, wanted, folder, answers))
        for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    for _ in wanted:
        yield answers.get(timeout=600)
    for process in ranks:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words of a case's name")
    parser.add_argument("--no-trace", action="store_true", help="do not trace")
    options = parser.parse_args()
    wanted = [case for case in cases() if options.only in case.name]
    errors: dict[str, list[float]] = {"closed form": [], "traced": []}
    print("| model, strategy, what is trained | measured, MB | closed form | traced |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_models(folder)
        for num_ranks in (1, 2, 4):
            for case, peak in _measure([case for case in wanted if case.num_ranks == num_ranks], folder):
                found = [case.predicted(folder), None if options.no_trace else traced(case, folder)]
                cells = []
                for kind, one in zip(errors, found, strict=True):
                    if one is not None:
                        errors[kind].append(one / peak - 1)
                    cells.append("" if one is None else f"{one / 1e6:.1f}, {one / peak - 1:+.1%}")
                print(f"| {case.name} | {peak / 1e6:.1f} | {' | '.join(cells)} |", flush=True)
    for kind, some in errors.items():
        if some:
            median = statistics.median(abs(one) for one in some)
            print(f"\n{kind}: {len(some)} cases, median {median:.1%}, worst {max(some, key=abs):+.1%}")


if __name__ == "__main__":
    main()
