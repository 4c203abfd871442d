"""What allranks.plan predicts of the memory that others measured, row by row, with signed errors.

    python -m benchmarks.plan_memory_rows            the table, with the constants as they are
    python -m benchmarks.plan_memory_rows --fit      fit the constants on half of the rows first, and print them

The rows are those of plan_rows.toml that have gigabytes, as `plan_rows` tells what ran.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence

from allranks.plan import reserve
from allranks.plan.memory import fullest, rank_memory
from allranks.plan.workload import Workload
from benchmarks.plan_rows import Row, as_zero2, rows


def as_measured(row: Row) -> Workload:
    """Which stage of ZeRO a full fine-tune had on one GPU is not said. Its time is that of stage 3, for whose hooks it
    waits; its memory that of stage 2, which the other scripts for one GPU ask for: neither fits both."""
    if row.workload.name == "qwen-full" and row.workload.num_ranks == 1:
        return as_zero2(row.workload)
    return row.workload


def gigabytes(row: Row) -> float:
    """Predicted, of all GPUs together."""
    return rank_memory(as_measured(row), row.device).total * row.workload.num_ranks / 1e9


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
        "further rows, on one GPU": [row for row in measured if _is_further(row) and row.workload.num_ranks == 1],
        "further rows, on two and four GPUs": [row for row in measured if row.workload.num_ranks > 1],
        "an earlier revision of the same table": [row for row in measured if row.is_later],
    }
    for name, part in parts.items():
        errors = [error(row) for row in part]
        if errors:
            signed, worst = statistics.median(errors), max(errors, key=abs)
            median = statistics.median(abs(one) for one in errors)
            yield f"- {name}: {len(part)} rows, median {median:.1%} (signed {signed:+.1%}), worst {worst:+.1%}"


def _is_further(row: Row) -> bool:
    return not row.is_anchor and not row.is_later


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
