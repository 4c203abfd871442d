"""One part, in a process of its own: `python -m benchmarks.parts.child MODULE DEVICE SCRATCH SHARED ROWS [ARGUMENT]`.

Each row becomes a line of JSON in the file ROWS at once, so that what a killed part had found is kept. What it and its
libraries print goes to its output, which is shown where it fails.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from allranks.parent import die_with_parent
from benchmarks.parts.part import Place


def main(module: str, device: str, scratch: str, shared: str, rows: str, argument: str = "") -> None:
    die_with_parent()
    place = Place(device, Path(scratch), Path(shared), argument)
    with Path(rows).open("a", buffering=1) as file:
        for row in importlib.import_module(module).run(place):
            file.write(json.dumps(asdict(row)) + "\n")
    # Threads of gloo, of DeepSpeed and of CUDA may crash or hang while the interpreter is taken down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
