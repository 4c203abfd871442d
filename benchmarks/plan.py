"""How long a plan takes: `python -m benchmarks.plan [--trace] [--model FOLDER]`. A 72B model on 64 GPUs, and a mixture.

Each is a whole command in a process of its own, as a user types it: seconds of the clock, and of the processor, which
say more on a machine that does other work. Limits: 1 s in closed form, 60 s traced.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = {
    "Qwen2.5-72B": {
        "model_type": "qwen2",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 29568,
        "vocab_size": 152064,
    },
    "Qwen3-235B-A22B": {
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151936,
    },
}
"""What memory and time depend on in their config.json."""
NODES = ("--nodes", "8", "--gpus-per-node", "8", "--gpu", "h100-80gb", "--link", "8xib-ndr")
REPEATS = 5


def measure(folder: Path, *more: str) -> tuple[float, float]:
    """Seconds of the clock and of the processor that one command takes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "allranks", "plan", str(folder), *NODES, *more]
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.perf_counter() - started
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", action="store_true", help="also trace the memory of the 72B model")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name, config in MODELS.items():
            folder = Path(temporary) / name
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            taken = [measure(folder) for _ in range(REPEATS)]
            clock, processor = (min(one[part] for one in taken) for part in (0, 1))
            print(f"{name} on 64 GPUs, closed form: {clock:.2f} s ({processor:.2f} s of CPU), the best of {REPEATS}")
        if asked.trace:
            clock, processor = measure(Path(temporary) / "Qwen2.5-72B", "--trace")
            print(f"Qwen2.5-72B on 64 GPUs, traced: {clock:.1f} s ({processor:.1f} s of CPU)")


if __name__ == "__main__":
    main()
