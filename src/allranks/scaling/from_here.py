"""All sizes started from one node, over ssh or inside a job of Slurm or PBS: each is a start of its own on as many."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from allranks.cluster.nodes import Host
from allranks.demo.commands import Command, log_tail
from allranks.exit_codes import DONE, FAILED
from allranks.launch.spec.everywhere import Everywhere
from allranks.scaling.child import run_child
from allranks.scaling.here import GRACE_SECONDS
from allranks.scaling.report import Outcome

_END_SECONDS = 5 * GRACE_SECONDS
"""The nodes are asked, which ask their ranks."""


def run_from_here(
    everywhere: Everywhere,
    sizes: Sequence[int],
    words_of_size: Mapping[int, Sequence[str]],
    folder: Path,
    *,
    begins: Callable[[int, Path], None],
) -> Iterator[Outcome]:
    """What came of each size, the largest first, on as many of the first hosts.

    `words_of_size` follow `allranks bench-scaling`; host files and logs are written into `folder`. `begins` is told
    each size, and where its output goes.
    """
    for nodes in reversed(sizes):
        hosts = folder / f"nodes-{nodes}.hosts"
        hosts.write_text("".join(f"{_line(host)}\n" for host in everywhere.hosts[:nodes]))
        words = ["allranks", "bench-scaling", *words_of_size[nodes], "--hostfile", str(hosts), "--json"]
        command = Command(f"{nodes} nodes", tuple(words), folder / f"nodes-{nodes}.log")
        begins(nodes, command.log)
        code = run_child(command, seconds_to_end=_END_SECONDS)
        yield _told(command, nodes) or _failed(command, nodes, code)


def _line(host: Host) -> str:
    return f"{host} slots={host.slots}" if host.slots is not None else str(host)


def _told(command: Command, nodes: int) -> Outcome | None:
    """What the start or its node 0 said of the size; None where they said nothing."""
    for line in reversed(log_tail(command.log, 100).splitlines()):
        if not line.startswith("{"):
            continue
        try:
            read = json.loads(line)
            if "error" in read:  # it was refused
                return Outcome(nodes, None, str(read["error"]), int(read["exit_code"]))
            [size] = read["sizes"]
            found = Outcome.from_message(size)
        except (ValueError, KeyError, TypeError):
            continue
        return found if found.nodes == nodes else None
    return None


def _failed(command: Command, nodes: int, code: int) -> Outcome:
    last = "\n".join(f"  {line}" for line in log_tail(command.log, 5).splitlines())
    return Outcome(nodes, None, f"it said nothing of its end:\n{last}", code if code > DONE else FAILED)
