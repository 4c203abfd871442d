"""Where the training loop makes the host wait for the GPU: every place, once, with how often.

    python -m benchmarks.syncs [--steps 6] [KEY=VALUE ...]

Trains the benchmark's model under `torch.cuda.set_sync_debug_mode`; there must be none between the first step and the
last. What loading the model waits for is not counted. Needs one CUDA device. Not yet run on hardware.
"""

import argparse
import collections
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from benchmarks.measure import allranks_config
from benchmarks.workload import Workload, write


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps (default 6)")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="keys of the config, values as JSON")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        parser.exit(2, "error: no CUDA device: on a CPU there is nothing to wait for\n")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        flat = config_to_watch(Path(folder), options.steps)
        for entry in options.keys:
            key, _, value = entry.partition("=")
            flat[key] = json.loads(value)
        found = syncs(flat)
    for (file, line), count in found.most_common():
        print(f"{count:5} x  {file}:{line}")
    print(f"{sum(found.values())} waits in {options.steps} steps")
    sys.exit(1 if found else 0)


def config_to_watch(folder: Path, steps: int) -> dict[str, Any]:
    """A run of so many steps of the benchmark's model, which is written to `folder`."""
    workload = Workload(device="cuda", warmup_steps=0, measured_steps=steps)
    write(workload, folder / "workload")
    return allranks_config(workload, folder / "workload", folder)


def syncs(flat: dict[str, Any]) -> collections.Counter[tuple[str, int]]:
    """File and line of each warning of torch about a synchronisation within `train`, of a run in this process."""
    import torch

    import allranks.train.main as engine
    from allranks.config.load import resolve_mapping

    train = engine.train
    found: collections.Counter[tuple[str, int]] = collections.Counter()

    def watched(loop: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return train(loop)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                found.update((one.filename, one.lineno) for one in caught if "synchroniz" in str(one.message))

    engine.train = watched
    code = engine.main_rank(resolve_mapping(flat))
    if code != 0:
        sys.exit(f"error: the run ended with exit code {code}")
    return found


if __name__ == "__main__":
    main()
