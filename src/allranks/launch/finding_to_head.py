"""A node's word to the command that started all nodes: which failure its end follows from."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace

from allranks.cluster.protocol import FINDING_BYTES, FINDING_FD
from allranks.findings import Finding


def has_head() -> bool:
    """Whether a command of ours started this one, beside those of the other nodes."""
    return FINDING_FD in os.environ


def tell_head(finding: Finding | None) -> None:
    """Leave it on the descriptor that the agent gave this command, if an agent started it."""
    fd = os.environ.pop(FINDING_FD, None)
    if fd is None or finding is None:
        return
    text = json.dumps(finding.to_message())
    if len(text) > FINDING_BYTES:
        text = json.dumps(replace(finding, what=finding.what[:1000], evidence=(), remedy="").to_message())
    with contextlib.suppress(OSError, ValueError):
        os.write(int(fd), text.encode())
