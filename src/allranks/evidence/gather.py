"""Gather what a node's ranks do now: within a few seconds, whatever hangs.

All that reads from a process, a disk or a device is done by a child of the caller's and by children of that, each of
which may hang: what they have told until the deadline is taken, and they are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allranks.listing import printable

VERSION = 1
SECONDS = 5.0
STARTING_SECONDS = 5.0  # an interpreter on a machine with other work
_MAX_BYTES = 8 * 2**20
_NAME = re.compile(r"[\w.-]{1,80}")


def gather_node(
    output_dir: str | Path,
    *,
    name: str,
    node: int | str,
    run_id: str = "",
    launch_id: str = "",
    seconds: float = SECONDS,
    keep: bool = True,
) -> dict[str, Any]:
    """What this machine's ranks of a run do, as a message of at most 200 KiB (see `summary`).

    `launch_id` leaves out ranks of other nodes on the same machine. With `keep` all that was gathered is also written
    to OUTPUT_DIR/evidence/`name`/node-`node`. Never raises: what could not be had stands in `problems`.
    """
    asked = {
        "output_dir": str(Path(output_dir).absolute()),
        "name": name if _NAME.fullmatch(name) else "unnamed",
        "node": node,
        "run_id": run_id,
        "launch_id": launch_id,
        "seconds": seconds,
        "keep": keep,
        "parent": os.getpid(),
    }
    try:
        lines = _ask(asked, seconds + STARTING_SECONDS)
    except OSError as error:
        return _nothing(node, f"this node could not look: {error.strerror}")
    told: dict[str, Any] = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            told |= said if isinstance(said, dict) else {}
    return told or _nothing(node, "what looks at the ranks gave no answer in time")


def _ask(asked: Mapping[str, Any], seconds: float) -> list[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "allranks.evidence.node"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(json.dumps(asked).encode(), timeout=seconds)
    except subprocess.TimeoutExpired as late:
        child.kill()
        output = late.output or b""
        with contextlib.suppress(subprocess.TimeoutExpired):  # held in the kernel: it is left to that
            output = child.communicate(timeout=0.5)[0]
    return output[:_MAX_BYTES].splitlines()


def _nothing(node: int | str, why: str) -> dict[str, Any]:
    return {"version": VERSION, "node": node, "ranks": [], "problems": {"node": printable(why, 300)}}
