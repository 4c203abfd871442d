"""The probe as one text that runs where allranks, torch or pip is missing; and on this node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from allranks.cluster.node_report import NodeReport
from allranks.parent import die_with_parent

_SENT = (
    *("secret_names", "secrets", "parent", "cluster.infiniband", "cluster.nccl_files"),
    *(f"cluster.probe.{name}" for name in ("node", "children", "pci", "processes", "system", "mounts", "names")),
    *(f"cluster.probe.{name}" for name in ("interfaces", "adapters", "nvidia", "amd", "kernel_log", "environment")),
    *(f"cluster.probe.{name}" for name in ("packages", "commit", "main")),
)
"""Each after those that it imports."""

_START = """
import sys

sys.path[:] = filter(None, sys.path)  # what lies in the current folder must not stand in for json
import json


def _run():
    request = json.loads(REQUEST)
    if sys.version_info < (3, 8):
        version = ".".join(map(str, sys.version_info[:3]))
        print(json.dumps({
            "version": 1,
            "python": {"executable": sys.executable, "version": version},
            "unanswered": {"probe": "needs Python 3.8 or newer; this is " + version},
        }))
        return
    import types

    def module(name):
        made = sys.modules[name] = types.ModuleType(name)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, made)
        return made

    # Stands in for an installed allranks, of whatever version.
    for name in ("allranks", "allranks.cluster", "allranks.cluster.probe"):
        module(name).__path__ = []
    for name, source in MODULES:
        exec(compile(source, name, "exec"), module(name).__dict__)
    sys.modules["allranks.cluster.probe.main"].main(request)


_run()
"""

_GRACE_SECONDS = 10
"""For an interpreter to start, and to end what hangs, on a node that is busy."""


@dataclass(frozen=True)
class ProbeRequest:
    """What a node is asked. `sources` None: all that there is. `packages` None: what a run depends on; * is allowed.

    `nccl_ib_hca` is NCCL_IB_HCA as the config has it, which the node's environment wins over, as for its ranks. `root`
    is where a recorded machine lies. `code` is the folder whose commit is told; None: where allranks lies.
    """

    names: Sequence[str] = ()
    paths: Sequence[Mapping[str, str]] = ()
    """Tables of `path` and `purpose`."""
    packages: Sequence[str] | None = None
    sources: Sequence[str] | None = None
    code: str | None = None
    nccl_ib_hca: str | None = None
    deadline_seconds: float = 5.0
    gpu_deadline_seconds: float | None = None
    """For the tools of the GPUs' drivers, where they may take longer than all else."""
    root: str = "/"

    @property
    def seconds(self) -> float:
        """When all of it is done at the latest."""
        return max(self.deadline_seconds, self.gpu_deadline_seconds or 0.0)

    def to_message(self) -> dict[str, object]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def source_text(request: ProbeRequest) -> str:
    """A program for the standard input of `python3 -`: one line of JSON is its answer. ASCII; Python 3.8 or newer runs
    it, an older one says that it is too old."""
    return f"REQUEST = {json.dumps(json.dumps(request.to_message()))}\n{_modules()}{_START}"


@cache
def _modules() -> str:
    top = Path(__file__).parents[2]
    sources = [
        [f"allranks.{name}", (top / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")] for name in _SENT
    ]
    return f"MODULES = {json.dumps(sources)}\n"


def probe_this_node(
    request: ProbeRequest = ProbeRequest(), *, python: str = sys.executable, env: Mapping[str, str] | None = None
) -> NodeReport:
    """This node's report, made in a child of its own that `python` runs; it comes within the request's deadline and a
    little more, and raises nothing: what went wrong is in `unanswered`."""
    deadline = request.seconds + _GRACE_SECONDS
    try:
        done = subprocess.run(
            [python, "-"],
            input=source_text(request).encode(),
            capture_output=True,
            timeout=deadline,
            preexec_fn=die_with_parent,
            env=env,
        )
    except subprocess.TimeoutExpired:
        return _no_report(f"did not answer in {deadline:g} s")
    except OSError as error:
        return _no_report(f"could not be started: {error}")
    return read_report(done.stdout, done.stderr)


def read_report(output: bytes, errors: bytes = b"") -> NodeReport:
    """What the program of `source_text` wrote, perhaps after greetings of a shell."""
    for line in reversed(output.decode(errors="replace").splitlines()):
        if line.startswith("{"):
            try:
                return NodeReport.from_message(json.loads(line))
            except (ValueError, RecursionError):
                continue
    said = errors.decode(errors="replace").strip().splitlines()
    return _no_report(f"ended without an answer{': ' + said[-1][:300] if said else ''}")


def _no_report(why: str) -> NodeReport:
    return NodeReport(unanswered={"probe": why})
