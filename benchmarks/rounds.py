"""Rounds of measurements: every contestant once in each, so that a slow minute hits all alike."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.measure import Measurement, measure
from benchmarks.workload import Workload, write

_T = TypeVar("_T")


def in_rounds(
    workload: Workload,
    contestants: Sequence[str],
    num_rounds: int,
    measure_one: Callable[[str, Path, Path], _T],
    shown: Callable[[str, _T], str],
) -> list[dict[str, _T]]:
    """What `measure_one` makes of each contestant in each round, in the order of `contestants`.

    It is given the contestant, the folder of the workload, and one of its own that is not there yet; `shown` is printed
    of each. Ends the program when one raises RuntimeError.
    """
    rounds: list[dict[str, _T]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        directory = Path(folder) / "workload"
        print(f"writing {workload.name} and {workload.num_documents} documents", flush=True)
        write(workload, directory)
        for number in range(1, num_rounds + 1):
            measured = {}
            # Each round begins with another contestant: nobody is always the one after the same neighbour's heat.
            first = (number - 1) % len(contestants)
            for index, one in enumerate([*contestants[first:], *contestants[:first]]):
                try:
                    measured[one] = measure_one(one, directory, Path(folder) / f"{number}-{index}")
                except RuntimeError as error:
                    sys.exit(f"error: round {number}: {one}: {error}")
                print(f"round {number}  {shown(one, measured[one])}", flush=True)
            rounds.append({one: measured[one] for one in contestants})
    return rounds


def run_rounds(workload: Workload, names: Mapping[str, str], num_rounds: int) -> list[dict[str, Measurement]]:
    """Every contestant of `names` (key -> name to show) by `measure`; speed, start and memory of each are printed."""
    width = max(map(len, names.values())) + 2

    def shown(key: str, one: Measurement) -> str:
        return (
            f"{names[key]:{width}}{one.tokens_per_second:8.0f} tokens/s"
            f"{one.first_step_seconds:8.2f} s to the first step{one.peak_memory_bytes / 2**20:8.0f} MiB"
        )

    def measure_one(key: str, directory: Path, scratch: Path) -> Measurement:
        return measure(key, workload, directory, scratch)

    return in_rounds(workload, list(names), num_rounds, measure_one, shown)
