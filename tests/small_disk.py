"""A disk of a few kilobytes, or one that becomes read-only or vanishes: real file systems, in a namespace of their own.

Mounts live in the mount namespace of a process of the test, so that they go with it, however it ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[1]


def _namespace() -> list[str] | None:
    """The command that gives a mount namespace: as root, or as the root of a user namespace; None for neither."""
    options = [["-m"]] if os.geteuid() == 0 else [["-U", "-r", "-m"]]
    for words in options:
        command = ["unshare", *words, "--propagation", "private"]
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/tmp"]).returncode == 0
        ):
            return command
    return None


def run_on_small_disk(place: Path, num_bytes: int, module: str, *arguments: object, seconds: float = 120) -> str:
    """Run `python -m MODULE PLACE ARGUMENTS` with a tmpfs of that size at `place`; its output.

    Skips where nothing can be mounted.
    """
    namespace = _namespace()
    if namespace is None:
        pytest.skip("no mount namespace to be had: it needs root, or user namespaces")
    place.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", module, str(place), *map(str, arguments)]
    mount = f'mount -t tmpfs -o size={num_bytes} none "$1" && shift && exec "$@"'
    done = subprocess.run(
        [*namespace, "sh", "-c", mount, "sh", str(place), *words],
        cwd=_REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
