"""The environment in which ranks of anyone's program can be asked what they do, if they are Python's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ANSWERS = "ALLRANKS_ANSWERS"
"""The run's output_dir, in the ranks' environment until they begin to answer; without it they do not."""


def hooked(environment: Mapping[str, str]) -> dict[str, str]:
    """The same with a `sitecustomize` of ours before the user's own, where it asks for that by `ANSWERS`.

    Python imports that name at its start (https://docs.python.org/3/library/site.html); nothing else reads PYTHONPATH.
    """
    if not environment.get(ANSWERS):
        return dict(environment)
    folder = str(Path(__file__).resolve().with_name("in_program"))
    given = environment.get("PYTHONPATH", "")
    return {**environment, "PYTHONPATH": f"{folder}{os.pathsep}{given}" if given else folder}
