"""How long a plan takes: `python -m benchmarks.plan [--trace]`. A 72B model on 8 and on 4096 nodes, and a mixture.

Each is a whole command in a process of its own, as a user types it, with the bytecode that an installation keeps:
seconds of the clock, and of the processor, which say more on a machine that does other work. Limits: 0.5 s of the
processor in closed form, 60 s traced.
"""

from __future__ import annotations

import argparse
import json
import os
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
GPUS = ("--gpus-per-node", "8", "--gpu", "h100-80gb", "--link", "8xib-ndr")
NUM_NODES = {"Qwen2.5-72B": (8, 4096), "Qwen3-235B-A22B": (8,)}
REPEATS = 8


def measure(folder: Path, num_nodes: int, *more: str) -> tuple[float, float]:
    """Seconds of the clock and of the processor that one command takes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "allranks", "plan", str(folder), "--nodes", str(num_nodes), *GPUS, *more]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, check=True, capture_output=True, env=env)
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
            for number in NUM_NODES[name]:
                taken = [measure(folder, number) for _ in range(REPEATS)]
                clock, processor = (min(one[part] for one in taken) for part in (0, 1))
                told = f"{clock:.2f} s ({processor:.2f} s of CPU), the least of {REPEATS}"
                print(f"{name} on {8 * number:,} GPUs, closed form: {told}")
        if asked.trace:
            clock, processor = measure(Path(temporary) / "Qwen2.5-72B", 8, "--trace")
            print(f"Qwen2.5-72B on 64 GPUs, traced: {clock:.1f} s ({processor:.1f} s of CPU)")


if __name__ == "__main__":
    main()
