"""How long tests wait for what must come: it ends a hang, and measures nothing on a machine that does much else."""

import time
from pathlib import Path

TIMEOUT_SECONDS = 480.0


def await_end(pid: int) -> None:
    """Until this process is gone, or is only waited for by who started it (Linux)."""
    stat = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 30
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)
