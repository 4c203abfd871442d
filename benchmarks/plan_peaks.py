"""What allranks.plan predicts of memory beside what real ranks of this machine's CPU allocate, with signed errors.

    python -m benchmarks.plan_peaks                      three models, each strategy: a quarter of an hour
    python -m benchmarks.plan_peaks --only fsdp2         cases whose name has this word

Each case builds a model, and takes two steps on rows of random tokens, with the engine's own code. What counts is the
allocator's peak: PyTorch's profiler writes down each allocation. It does not see what another thread frees, as gloo's
do when they let go of a tensor last; so each wait for a collective is followed by a pause, in which they do.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allranks.config import RunConfig
from allranks.config.load import resolve_mapping
from allranks.plan.memory import rank_memory
from allranks.plan.workloads import workloads

_SIZES = {"hidden_size": 256, "num_attention_heads": 8, "max_position_embeddings": 2048, "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 8, "intermediate_size": 704, "num_key_value_heads": 4, "vocab_size": 4096},
    "qwen3": {
        "num_hidden_layers": 6,
        "intermediate_size": 768,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 8192,
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "num_hidden_layers": 4,
        "intermediate_size": 512,
        "num_key_value_heads": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 4096,
    },
}
# DeepSpeed's buckets have gigabytes by default, beside which nothing else would be seen.
_SMALL = {"reduce_bucket_size": 1_000_000}
STRATEGIES: dict[str, dict[str, Any]] = {
    "one process": {},
    "ddp": {},
    "fsdp2": {"fsdp_version": 2},
    "fsdp2 without resharding": {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}},
    "zero2": {"deepspeed": {"zero_optimization": {"stage": 2, **_SMALL}}},
    "zero3": {"deepspeed": {"zero_optimization": {"stage": 3, **_SMALL, "stage3_prefetch_bucket_size": 1_000_000}}},
}
_LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, recomputed": {"gradient_checkpointing": True},
    "lora": _LORA,
}
FURTHER: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("qlora", "ddp", {**_LORA, "adapter": "qlora"}),
    ("qlora", "fsdp2", {**_LORA, "adapter": "qlora"}),
    ("full, two micro-batches", "fsdp2", {"gradient_accumulation_steps": 2}),
    ("full, two micro-batches", "zero2", {"gradient_accumulation_steps": 2}),
    ("full, bf16", "one process", {"bf16": True, "sequence_len": 64}),
    ("full, bf16", "fsdp2", {"bf16": True, "sequence_len": 64}),
    ("full, bf16", "zero2", {"bf16": True, "sequence_len": 64}),
)
_TOKENS = 256
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Case:
    """One row of the table: `keys` are of its config."""

    model: str
    strategy: str
    variant: str
    keys: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.model}, {self.strategy}, {self.variant}"

    @property
    def num_ranks(self) -> int:
        return 1 if self.strategy == "one process" else 2

    def config(self, folder: Path) -> RunConfig:
        """As it is trained."""
        flat = {
            "base_model": str(folder / self.model),
            "datasets": [{"path": "none.jsonl", "type": "completion"}],
            "output_dir": str(folder / "out"),
            "learning_rate": 1e-3,
            "sequence_len": _TOKENS,
        }
        return resolve_mapping({**flat, **STRATEGIES[self.strategy], **self.keys})

    def predicted(self, folder: Path) -> float:
        """Bytes of a rank."""
        described = json.loads((folder / self.model / "config.json").read_text())
        of_config = workloads(self.config(folder), described, num_nodes=1, gpus_per_node=self.num_ranks, on_cpu=True)
        return rank_memory(of_config[0]).total


def cases() -> Iterator[Case]:
    """Every model under every strategy and variant, and some further ones of the first model."""
    for model in MODELS:
        for strategy in STRATEGIES:
            for variant, keys in VARIANTS.items():
                yield Case(model, strategy, variant, keys)
    for variant, strategy, keys in FURTHER:
        yield Case("llama", strategy, variant, keys)


def write_models(folder: Path, only: str = "") -> None:
    """Random weights, with their config.json; of the model `only`, if it is given."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, sizes in MODELS.items():
        if only and name != only:
            continue
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **{**_SIZES, **sizes})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)


def measured(case: Case, folder: Path, rank: int) -> int:
    """Bytes at the peak of this rank."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from allranks.model.batch import TorchBatch
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
                ids, labelled = torch.randint(1, 4096, (1, tokens)), torch.arange(tokens - 1)
                positions = torch.arange(tokens)[None]
                batch = TorchBatch(ids, positions, (tokens,), labelled, ids[0, 1:], tokens, (tokens,))
                with strategy.micro_batch(last=index == accumulated - 1):
                    loss = model.forward_loss(batch) / tokens
                    strategy.backward(loss)
                del loss
            strategy.step()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a word of a case's name")
    wanted = [case for case in cases() if parser.parse_args().only in case.name]
    errors = []
    print("| model, strategy, what is trained | measured, MB | predicted, MB | error |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_models(folder)
        for num_ranks in (1, 2):
            of_size = [case for case in wanted if case.num_ranks == num_ranks]
            context = multiprocessing.get_context("spawn")
            answers, port = context.Queue(), random.randint(20_000, 40_000)
            ranks = [
                context.Process(target=_rank, args=(rank, num_ranks, port, of_size, folder, answers))
                for rank in range(num_ranks if of_size else 0)
            ]
            for process in ranks:
                process.start()
            for _ in of_size:
                case, peak = answers.get(timeout=600)
                errors.append(case.predicted(folder) / peak - 1)
                print(f"| {case.name} | {peak / 1e6:.1f} | {case.predicted(folder) / 1e6:.1f} | {errors[-1]:+.1%} |")
            for process in ranks:
                process.join()
    if errors:
        median = statistics.median(abs(one) for one in errors)
        print(f"\n{len(errors)} cases, median {median:.1%}, worst {max(errors, key=abs):+.1%}")


if __name__ == "__main__":
    main()
