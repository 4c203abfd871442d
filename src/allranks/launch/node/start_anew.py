"""This process anew, with variables that are read when a process starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def start_anew(variables: Mapping[str, str]) -> None:
    """The same command in this process, with `variables`; returns where there are none, and where it is not the command
    `allranks` but a program that calls it. What is not on the disk or with the terminal yet is lost: only for the
    beginning of a command."""
    if variables and _is_ours():
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables})


def _is_ours() -> bool:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)  # of `python -m allranks`; the script that pip installs has none
    name = spec.name.partition(".")[0] if spec is not None else Path(getattr(main, "__file__", None) or "").name
    return name == "allranks"
