"""What a node has of a run on its own disk, for a bundle that is made elsewhere.

Run on that node, over ssh, as `python -m allranks.bundle.of_node RUN MAX_BYTES`; its output is for `from_nodes`.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from allranks.bundle.choose import Chosen, choose
from allranks.entry_points import refuse_by_hand
from allranks.observe import RunDir
from allranks.observe.rundir import has_a_record
from allranks.secrets import known_secrets

_LINE = 32 * 2**10
_MAX_BYTES = 256 * 2**20
"""Of an answer, before it was packed: an unpacked one is not trusted to be small."""


@dataclass(frozen=True)
class OfNode:
    """What a node, by the `name` that reaches it, has; or why nothing is known. `secrets` are those of its environment:
    they are looked for in all files, and stand nowhere."""

    name: str
    chosen: tuple[Chosen, ...] = ()
    secrets: tuple[str, ...] = ()
    missing: str = ""


def lines_of(run: RunDir, max_bytes: int) -> Sequence[str]:
    """The answer, in lines of bounded length."""
    told = {"files": [asdict(one) for one in choose(run, max_bytes)], "secrets": sorted(known_secrets(os.environ))}
    text = base64.b64encode(zlib.compress(json.dumps(told).encode())).decode()
    return [text[at : at + _LINE] for at in range(0, len(text), _LINE)]


def read_lines(name: str, lines: Sequence[str]) -> OfNode:
    """What such lines say. Raises ValueError."""
    try:
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(base64.b64decode("".join(lines), validate=True), _MAX_BYTES)
        if not unpacking.eof:
            raise ValueError("it is cut off, or too large")
        told = json.loads(content)
        files = tuple(Chosen(**one) for one in told["files"])
        kinds = Chosen.__annotations__
        if any(type(getattr(one, key)).__name__ != kind for one in files for key, kind in kinds.items()):
            raise ValueError("it is not of this version")
        return OfNode(name, files, tuple(map(str, told["secrets"])))
    except (zlib.error, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is no answer: {error}") from None


def main() -> None:
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        refuse_by_hand("allranks.bundle.of_node", "`allranks bundle`")
    run = RunDir(Path(sys.argv[1]))
    if not has_a_record(run):
        sys.exit(f"{run.path}: no run has written anything there")
    sys.stdout.writelines(f"{line}\n" for line in lines_of(run, int(sys.argv[2])))


if __name__ == "__main__":
    main()
