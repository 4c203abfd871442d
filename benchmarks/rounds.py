"""Rounds of measurements: every contestant once in each, so that a slow minute hits all alike."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Measurement, measure
from benchmarks.workload import Workload, write


def run_rounds(workload: Workload, names: Mapping[str, str], num_rounds: int) -> list[dict[str, Measurement]]:
    """Measure every contestant of `names` (key -> name to show) in each round, and print it; ends the program when one
    fails. Measurements are in the order of `names`."""
    chosen, width = list(names), max(map(len, names.values())) + 2
    rounds: list[dict[str, Measurement]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        directory = Path(folder) / "workload"
        print(f"writing {workload.name} and {workload.num_documents} documents", flush=True)
        write(workload, directory)
        for number in range(1, num_rounds + 1):
            measured = {}
            # Each round begins with another contestant: nobody is always the one after the same neighbour's heat.
            first = (number - 1) % len(chosen)
            for key in chosen[first:] + chosen[:first]:
                try:
                    measured[key] = measure(key, workload, directory, Path(folder) / f"{key}-{number}")
                except RuntimeError as error:
                    sys.exit(f"error: round {number}: {error}")
                one = measured[key]
                print(
                    f"round {number}  {names[key]:{width}}{one.tokens_per_second:8.0f} tokens/s"
                    f"{one.first_step_seconds:8.2f} s to the first step{one.peak_memory_bytes / 2**20:8.0f} MiB",
                    flush=True,
                )
            rounds.append({key: measured[key] for key in chosen})
    return rounds
