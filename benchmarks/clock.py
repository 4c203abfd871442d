"""How time is taken: wall-clock moments, the same for every contestant, counted from when its process was started."""

import json
import os
import time
from pathlib import Path

RECORD = "BENCHMARK_RECORD"  # the file that a program writes, where it cannot be told by an argument
SPAWNED = "BENCHMARK_SPAWNED"  # unix seconds at which the measuring program started this process


class Clock:
    """Writes one JSON line a moment: the end of a phase, or the end of an optimizer step and its real tokens."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._last = float(os.environ[SPAWNED])
        self._write(spawned=self._last)

    def phase(self, name: str) -> None:
        """The time since the last moment belonged to `name`; the same name may come more than once."""
        now = time.time()
        self._write(phase=name, seconds=now - self._last)
        self._last = now

    def step(self, tokens: int) -> None:
        """An optimizer step is done; `tokens` counts what it read without padding."""
        import torch

        device_bytes = 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            device_bytes = torch.cuda.max_memory_allocated()
        self._write(step=True, t=time.time(), tokens=tokens, device_bytes=device_bytes)

    def _write(self, **fields: object) -> None:
        self._file.write(json.dumps(fields) + "\n")
