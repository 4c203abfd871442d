"""NCCL's own files: variables that hold though no environment shows them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def from_files(env: Mapping[str, str] = os.environ, root: Path = Path("/")) -> dict[str, tuple[str, Path]]:
    """Variables from nccl.conf, with the file: the user's (NCCL_CONF_FILE or ~/.nccl.conf), then /etc/nccl.conf.

    The first to name a variable wins, and the environment wins over both. Lines are NAME=VALUE, without quotes.
    `root` is where a recorded machine's files lie.
    """
    own = env.get("NCCL_CONF_FILE")
    found: dict[str, tuple[str, Path]] = {}
    for path in (Path(own) if own else Path.home() / ".nccl.conf", Path("/etc/nccl.conf")):
        there = path if root == Path("/") else root / str(path).lstrip("/")
        try:
            lines = there.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found.setdefault(name, (value, path))
    return {name: entry for name, entry in found.items() if name not in env}
