"""How long tests wait for what must come: it ends a hang, and measures nothing on a machine that does much else."""

import time
from pathlib import Path

TIMEOUT_SECONDS = 480.0


def has_ended(pid: int) -> bool:
    """Whether this process is gone, or whoever started or adopted it has only not looked yet (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ends while it is read
        return True


def await_end(pid: int) -> None:
    deadline = time.monotonic() + 30
    while not has_ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
