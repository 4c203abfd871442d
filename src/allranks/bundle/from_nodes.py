"""What other nodes have of a run on disks of their own, over ssh (srun, pbsdsh) as they are started."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from allranks.bundle.choose import MAX_BYTES
from allranks.bundle.of_node import OfNode, read_lines
from allranks.cluster.fanout import NodeLost, NodeRefused, fan_out
from allranks.cluster.link import NotOpened
from allranks.cluster.nodes import Host
from allranks.cluster.protocol import GRACE_SECONDS
from allranks.cluster.transports import Transport

_SECONDS = 60.0  # to read, pack and send some megabytes, from a slow disk
_FEWEST_BYTES = 2**20
_MOST_SENT = 64 * 2**20


def from_nodes(
    hosts: Sequence[Host], transport: Transport, run: Path, *, seconds: float = _SECONDS, max_bytes: int = MAX_BYTES
) -> list[OfNode]:
    """What each of `hosts` has in the folder `run`, in their order; who gives no answer says why. Raises nothing.

    All of them together have about `max_bytes`.
    """
    each = max(_FEWEST_BYTES, max_bytes // max(1, len(hosts)))
    return asyncio.run(_gather(hosts, transport, [str(run), str(each)], seconds))


async def _gather(
    hosts: Sequence[Host], transport: Transport, arguments: Sequence[str], seconds: float
) -> list[OfNode]:
    said = [_Said() for _ in hosts]

    async def take(node: int, stream: str, lines: list[str]) -> None:
        said[node].take(stream, lines)

    command = [transport.python, "-P", "-m", "allranks.bundle.of_node", *arguments]
    missing: dict[int, str] = {}
    try:
        async with fan_out(hosts, transport, take) as fanout:
            missing |= fanout.unreachable
            running = {asyncio.create_task(fanout.run(node, command, {}, "/")): node for node in fanout.nodes}
            done, late = await asyncio.wait(running, timeout=seconds) if running else (set(), set())
            missing |= {running[task]: why for task in done if (why := _why(task, said[running[task]]))}
            missing |= {running[task]: f"no answer within {seconds:.0f} s" for task in late}
            if late:
                fanout.stop(GRACE_SECONDS, [running[task] for task in late])
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
    except NotOpened as error:  # nothing leads to any of them
        missing = dict.fromkeys(range(len(hosts)), str(error))
    return [
        OfNode(str(host), missing=missing[node]) if node in missing else said[node].answer(str(host))
        for node, host in enumerate(hosts)
    ]


def _why(task: asyncio.Task[int], said: _Said) -> str:
    """Why a node has given no answer; "" where it has."""
    try:
        code = task.result()
    except (NodeLost, NodeRefused) as error:
        return str(error)
    return "" if code == 0 else said.last_words or f"it ended with exit code {code}"


class _Said:
    """What the command of one node has written."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._size = 0
        self._errors: deque[str] = deque(maxlen=1)

    def take(self, stream: str, lines: list[str]) -> None:
        if stream == "stderr":
            self._errors.extend(line for line in lines if line.strip())
        elif self._size < _MOST_SENT:
            self._lines += lines
            self._size += sum(map(len, lines))

    @property
    def last_words(self) -> str:
        return "".join(self._errors)

    def answer(self, name: str) -> OfNode:
        try:
            return read_lines(name, self._lines)
        except ValueError as error:
            return OfNode(name, missing=f"its answer cannot be read: {error}")
