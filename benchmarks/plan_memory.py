"""Memory of a rank as `allranks plan` has it, in closed form and traced, beside what real ranks on this machine held.

    python -m benchmarks.plan_memory [--models tied,untied,experts] [--strategies single/ddp/…]

Measured is the most that torch's allocator had given out in the second step, as the profiler reads it from the
allocator itself, so that what kernels and gloo take for a moment counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch._C._distributed_c10d import Work

from allranks.config.load import resolve_mapping
from allranks.plan.memory import rank_memory
from allranks.plan.workloads import workloads
from allranks.trace.asked import Asked, traced_keys
from allranks.trace.child import trace

_DENSE: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 1024,
}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"model_type": "llama", "tie_word_embeddings": True, **_DENSE},
    "untied": {"model_type": "qwen3", "tie_word_embeddings": False, **_DENSE},
    "experts": {
        "model_type": "qwen3_moe",
        "tie_word_embeddings": False,
        **_DENSE,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
    },
}
_FSDP: dict[str, Any] = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
STRATEGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "single, recomputed": (1, {"gradient_checkpointing": True}),
    "ddp": (2, {}),
    "fsdp": (2, _FSDP),
    "fsdp, recomputed": (2, {**_FSDP, "gradient_checkpointing": True}),
    "fsdp, not resharded": (2, {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}}),
    "hsdp": (4, {**_FSDP, "dp_shard_size": 2}),
    "lora": (1, {"adapter": "lora", "lora_r": 16, "lora_alpha": 16, "lora_target_linear": True}),
    "lora, fsdp": (2, {**_FSDP, "adapter": "lora", "lora_r": 16, "lora_alpha": 16, "lora_target_linear": True}),
    "bf16, fsdp": (2, {**_FSDP, "bf16": True}),
    "bf16, ddp": (2, {"bf16": True}),
}
LENGTH = 512
_PAUSE_SECONDS = 0.02
"""After each collective, in which gloo's threads let go of its tensors: what they free later, the profiler misses."""


@dataclass(frozen=True)
class Row:
    """Bytes of one rank."""

    model: str
    strategy: str
    measured: float
    traced: float
    closed_form: float

    def error(self, predicted: float) -> float:
        """Signed, of the measured."""
        return predicted / self.measured - 1


def rows(models: list[str], strategies: list[str]) -> Iterator[Row]:
    """Predict all, in this process; then measure all of so many ranks in one start."""
    with tempfile.TemporaryDirectory() as folder:
        jobs: list[Job] = []
        for model in models:
            place = Path(folder) / model
            config = write_model(MODELS[model], place)
            jobs += [_predicted(model, strategy, str(place), config) for strategy in strategies]
        for num_ranks in sorted({STRATEGIES[job.strategy][0] for job in jobs}):
            together = [job for job in jobs if STRATEGIES[job.strategy][0] == num_ranks]
            for job, measured in zip(together, measured_peaks([job.keys for job in together], num_ranks), strict=True):
                yield Row(job.model, job.strategy, measured, job.traced, job.closed_form)


@dataclass(frozen=True)
class Job:
    """What is to be measured, and what was predicted of it."""

    model: str
    strategy: str
    keys: dict[str, Any]
    traced: float
    closed_form: float


def _predicted(model: str, strategy: str, folder: str, config: Mapping[str, Any]) -> Job:
    num_ranks, keys = STRATEGIES[strategy]
    cfg = resolve_mapping(config_keys(folder, keys))
    closed = rank_memory(workloads(cfg, config, num_nodes=1, gpus_per_node=num_ranks, on_cpu=True)[0])
    asked = Asked(
        keys=traced_keys(cfg, micro_batch_size=1, on_cpu=True),
        model=config,
        num_ranks=num_ranks,
        ranks_per_node=num_ranks,
        num_micro_batches=1,
        lengths=(LENGTH,),
        labelled=1.0,
        on_cpu=True,
        every_layer=False,
    )
    return Job(model, strategy, cfg.flat(), sum(trace(asked).values()), closed.total)


def config_keys(folder: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """A config of the model in `folder`."""
    common: dict[str, Any] = {
        "base_model": folder,
        "datasets": [{"path": "data.jsonl", "type": "completion"}],
        "output_dir": folder,
        "learning_rate": 1e-4,
        "sequence_len": LENGTH,
        "sample_packing": True,
        "max_steps": 2,
    }
    return {**common, **keys}


def write_model(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Save a random model; returns its config.json."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(config)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def measured_peaks(configs: list[dict[str, Any]], num_ranks: int) -> list[float]:
    """Bytes that rank 0 held when it held most in the second step of each, in real processes over gloo."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (configs, folder, num_ranks), nprocs=num_ranks, start_method="spawn")
        return json.loads((Path(folder) / "peaks").read_text())


def _rank(rank: int, configs: list[dict[str, Any]], folder: str, num_ranks: int) -> None:
    torch.set_num_threads(1)
    wait = Work.wait

    def wait_and_pause(*given: Any, **named: Any) -> Any:
        waited = wait(*given, **named)
        time.sleep(_PAUSE_SECONDS)
        return waited

    Work.wait = wait_and_pause
    if num_ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    peaks = [peak_of_steps(keys, rank, num_ranks) for keys in configs]
    if rank == 0:
        (Path(folder) / "peaks").write_text(json.dumps(peaks))
    if num_ranks > 1:
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may crash while the interpreter is taken down


def peak_of_steps(keys: Mapping[str, Any], rank: int, num_ranks: int) -> int:
    """What this rank's allocator had given out at most in the second of two steps."""
    from allranks.config import RunConfig
    from allranks.model.build import build_model
    from allranks.model.placement import place
    from allranks.trace.step import batch_of
    from allranks.train.strategies import make_strategy

    cfg = RunConfig.from_resolved(keys)
    gc.collect()  # what the config before has left
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.empty(1)  # the first event: what was there before it is not of this config
        model = build_model(cfg, place(cfg, torch.device("cpu"), rank, num_ranks))
        strategy = make_strategy(cfg, model)
        batch = batch_of((LENGTH,), 1.0)
        for step in range(2):
            with torch.profiler.record_function(f"step {step}"):
                with strategy.micro_batch(last=True):
                    losses = model.forward_losses(batch)
                    strategy.backward(losses.cross_entropy / LENGTH)
                strategy.step()
                del losses
    return _most_allocated(profile.profiler.kineto_results)


def _most_allocated(results: Any) -> int:
    since = next(event.start_ns() for event in results.events() if event.name() == "step 1")
    found: list[tuple[int, int]] = []
    nodes = list(results.experimental_event_tree())
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if str(node.typed[0]).endswith("Allocation"):
            found.append((node.start_time_ns, node.typed[1].total_allocated))
    first = min(found)[1]
    return max(total for when, total in found if when >= since) - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--strategies", default="/".join(STRATEGIES), help="names with / between them")
    asked = parser.parse_args()
    done: list[Row] = []
    print("| model | strategy | measured MB | traced | error | closed form | error |\n|---|---|---|---|---|---|---|")
    for row in rows(asked.models.split(","), asked.strategies.split("/")):
        done.append(row)
        parts = [f"{row.model} | {row.strategy} | {row.measured / 1e6:.1f}"]
        parts += [f"{p / 1e6:.1f} | {row.error(p):+.1%}" for p in (row.traced, row.closed_form)]
        print("| " + " | ".join(parts) + " |", flush=True)
    for name in ("traced", "closed_form"):
        errors = [abs(row.error(getattr(row, name))) for row in done]
        print(f"{name}: median {statistics.median(errors):.1%}, worst {max(errors):.1%} of {len(errors)}")


if __name__ == "__main__":
    main()
