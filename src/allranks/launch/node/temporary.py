"""A folder of the run's own for temporary files, in place of the system's: what is left there goes with the run."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
OUTER = "ALLRANKS_OUTER_TMPDIR"
"""What TMPDIR was for the user, for anyone's program, whose files are not ours to remove."""


@contextlib.contextmanager
def own_temporary_folder(env: Mapping[str, str] = os.environ, *, compiles: bool = False) -> Iterator[dict[str, str]]:
    """Variables that lead a launcher and its ranks to a folder which is removed at the end, with all that is in it.

    `compiles`: what torch compiles stays where torch would keep it, for the next run to start sooner.
    """
    above = env.get("TMPDIR") or tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="allranks-", dir=above)
    kept = {}
    if compiles and _COMPILED not in env:  # as torch/_inductor/runtime/cache_dir_utils.py names it
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
        kept = {_COMPILED: str(Path(above, f"torchinductor_{user}"))}
    try:
        yield {"TMPDIR": folder, OUTER: env.get("TMPDIR", ""), **kept}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def give_back_temporary_folder(env: MutableMapping[str, str]) -> None:
    """Within a rank that becomes anyone's program: TMPDIR as the user has it."""
    outer = env.pop(OUTER, None)
    if outer:
        env["TMPDIR"] = outer
    elif outer is not None:
        env.pop("TMPDIR", None)
