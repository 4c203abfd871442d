"""What allranks.plan predicts of the memory that others measured, row by row, with signed errors.

    python -m benchmarks.plan_memory_rows            the table, with the constants as they are
    python -m benchmarks.plan_memory_rows --fit      fit the constants on half of the rows first, and print them

The rows are those of plan_rows.toml that have gigabytes. What Qwen's scripts do differently from allranks is said in
`SCRIPTS`, with its source; nothing else is tuned for a row.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from allranks.plan import reserve
from allranks.plan.memory import fullest, rank_memory
from allranks.plan.step_traffic import Layout
from allranks.plan.workload import ElementBytes, Workload
from benchmarks.plan_rows import Row, rows

# https://github.com/QwenLM/Qwen: finetune.py and its scripts; modeling_qwen.py beside the weights makes the loss of a
# shifted copy of all logits, in float32 under autocast (LoRA) and in the model's type under DeepSpeed (full, Q-LoRA).
# PyTorch 2.0's AdamW is not fused, and makes two copies of a state in its step (torch/optim/adamw.py).
_ALL: dict[str, Any] = {"recomputes": True, "shifts_logits": True, "foreach": True, "foreach_copies": 2}
# PEFT of that time made adapters, and copies of the ends, in the type of the weights (tuners/lora/layer.py, 0.6).
_ADAPTERS = ElementBytes(compute=2, frozen=2, trained=2, gradient=2, master=0, state=4)
_UNDER_DEEPSPEED = ElementBytes(compute=2, frozen=2, trained=2, gradient=2, master=4, state=8, packed=0.5 + 4 / 128)
_ZERO2 = Layout("zero", stage=2)
SCRIPTS: dict[str, dict[str, Any]] = {
    "qwen-lora": {"element": _ADAPTERS},
    "qwen-lora-emb": {"element": _ADAPTERS},
    "qwen-qlora": {"element": _UNDER_DEEPSPEED, "upcasts_logits": False, "layout": _ZERO2},
    # On one GPU the stage is not said; 2 is what the other script for one GPU asks for.
    "qwen-full": {"upcasts_logits": False},
    "qwen-lora-zero3": {"upcasts_logits": False},
}


def as_measured(row: Row) -> Workload:
    """The row's workload as the script ran it."""
    workload, hidden = row.workload, row.workload.shape.hidden
    workload = replace(workload, **_ALL, **SCRIPTS[workload.name])
    if workload.name == "qwen-full" and workload.num_ranks == 1:
        workload = replace(workload, layout=_ZERO2)
    if workload.layout.stage == 2:  # ds_config_zero2.json: reduce_bucket_size 2e8, two such buffers with overlap_comm
        workload = replace(workload, bucket_elements=400_000_000)
    if workload.layout.stage == 3:  # ds_config_zero3.json leaves these to transformers, which takes the width's square
        buckets = {"bucket_elements": hidden**2, "prefetch_elements": int(0.9 * hidden**2)}
        workload = replace(workload, **buckets, persistent_below=10 * hidden)
    return workload


def gigabytes(row: Row) -> float:
    """Predicted, of all GPUs together."""
    workload = as_measured(row)
    return rank_memory(workload, row.device).total * workload.num_ranks / 1e9


def error(row: Row) -> float:
    """Signed, as a part of what was measured."""
    assert row.gigabytes is not None
    return gigabytes(row) / row.gigabytes - 1


def fit(measured: Sequence[Row]) -> tuple[float, float]:
    """The two constants of `plan.reserve` with the least errors, on a grid: their mean, and a quarter of the worst."""
    tensors = [(row, fullest(as_measured(row)).total) for row in measured]

    def loss(tried: tuple[float, float]) -> float:
        context, fragmented = tried
        sizes = [
            abs((context + (1 + fragmented) * total) * row.workload.num_ranks / 1e9 / row.gigabytes - 1)
            for row, total in tensors
            if row.gigabytes is not None
        ]
        return statistics.fmean(sizes) + max(sizes) / 4

    best = min(itertools.product([0.1e9 * n for n in range(4, 30)], [0.01 * n for n in range(16)]), key=loss)
    reserve.CONTEXT_BYTES, reserve.FRAGMENTED = best
    return best


def table(measured: Sequence[Row]) -> Iterator[str]:
    """Markdown: each row with its signed error, then the median and the worst of each part."""
    yield "| row | GPUs | tokens | measured, GB | predicted, GB | error |"
    yield "|---|---|---|---|---|---|"
    for row in measured:
        mark = " (fitted)" if row.fits else ""
        yield (
            f"| {row.group}{mark} | {row.workload.num_ranks} | {row.workload.tokens} | {row.gigabytes} | "
            f"{gigabytes(row):.1f} | {error(row):+.1%} |"
        )
    yield ""
    parts = {
        "the half that was fitted": [row for row in measured if row.is_anchor and row.fits],
        "the other half": [row for row in measured if row.is_anchor and not row.fits],
        "further rows, on one GPU": [row for row in measured if not row.is_anchor and row.workload.num_ranks == 1],
        "further rows, on two and four GPUs": [row for row in measured if row.workload.num_ranks > 1],
    }
    for name, part in parts.items():
        errors = [error(row) for row in part]
        if errors:
            signed, worst = statistics.median(errors), max(errors, key=abs)
            median = statistics.median(abs(one) for one in errors)
            yield f"- {name}: {len(part)} rows, median {median:.1%} (signed {signed:+.1%}), worst {worst:+.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the constants first, and print them")
    measured = [row for row in rows() if row.gigabytes is not None]
    if parser.parse_args().fit:
        context, fragmented = fit([row for row in measured if row.fits])
        print(f"CONTEXT_BYTES {context:.2g}, FRAGMENTED {fragmented:.2f}\n")
    for line in table(measured):
        print(line)


if __name__ == "__main__":
    main()
