"""Agents on all nodes, and what can be asked of them: one interface over ssh, srun, pbsdsh and this machine."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from allranks.cluster.nodes import Host
from allranks.cluster.subtree import OpenLink, Subtree
from allranks.cluster.transports import Transport, opening

OnOutput = Callable[[int, str, list[str]], Awaitable[None]]
"""Is given the node's number, "stdout" or "stderr", and lines. While it waits, that node's output waits."""


class NodeLost(Exception):
    """A node that was reached does not answer any more; the text says what is known."""

    def __init__(self, node: int, reason: str) -> None:
        super().__init__(reason)
        self.node = node


class NodeRefused(Exception):
    """A node's agent could not do what was asked; the text is its own."""

    def __init__(self, node: int, reason: str) -> None:
        super().__init__(reason)
        self.node = node


@contextlib.asynccontextmanager
async def fan_out(hosts: Sequence[Host], transport: Transport, on_output: OnOutput) -> "AsyncIterator[Fanout]":
    """Within, agents run on `hosts`; nodes are numbered in their order. Afterwards nothing of them is left anywhere.

    `unreachable` of what is yielded tells, by node, why one could not be connected to; all others answer.
    """
    async with opening(transport, hosts) as open_link:
        fanout = Fanout(hosts, transport, on_output, open_link)
        try:
            await fanout.connect()
            yield fanout
        finally:
            await fanout.close()


class Fanout:
    """What `fan_out` yields."""

    def __init__(self, hosts: Sequence[Host], transport: Transport, on_output: OnOutput, open_link: OpenLink) -> None:
        self.hosts = list(hosts)
        self.unreachable: dict[int, str] = {}
        self.returncodes: dict[int, object] = {}
        """Of what should have led to those, by node; None where it did not end."""
        self.findings: dict[int, object] = {}
        """What commands that have ended left about their end, as it came, by node."""
        self._transport = transport
        self._on_output = on_output
        self._subtree = Subtree(open_link, self._receive)
        self._joined: set[int] = set()
        self._lost: dict[int, str] = {}
        self._waiting: dict[int, tuple[int, asyncio.Future[dict[str, Any]]]] = {}
        self._requests = 0

    async def connect(self) -> None:
        nodes = [{"node": index, "host": host.name, "user": host.user} for index, host in enumerate(self.hosts)]
        await self._subtree.adopt(nodes, asdict(self._transport))
        for node in range(len(self.hosts)):
            if node not in self._joined and node not in self.unreachable:
                self.unreachable[node] = self._lost.get(node, "no news of it came")

    async def close(self) -> None:
        await self._subtree.close()

    @property
    def nodes(self) -> list[int]:
        """Numbers of the nodes that answer."""
        return sorted(self._joined - set(self._lost))

    async def ask(self, node: int, do: str, **fields: Any) -> dict[str, Any]:
        """The node's answer to a request of the protocol. Raises NodeLost and NodeRefused."""
        if node in self._lost or node in self.unreachable:
            raise NodeLost(node, self._lost.get(node) or self.unreachable[node])
        self._requests += 1
        number = self._requests
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = (node, future)
        try:
            self._subtree.send({"do": do, "to": node, "re": number, **fields})
            answer = await future
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            raise NodeRefused(node, str(answer["error"]))
        return answer

    async def ask_all(self, do: str, nodes: Sequence[int] | None = None, **fields: Any) -> list[dict[str, Any]]:
        """The answers of `nodes` (default: all that answer), in order. Raises what `ask` does, for the first."""
        wanted = self.nodes if nodes is None else nodes
        return list(await asyncio.gather(*(self.ask(node, do, **fields) for node in wanted)))

    async def run(self, node: int, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> int:
        """Run a command to its end; its exit status, negative where a signal ended it. Raises as `ask` does."""
        answer = await self.ask(node, "run", argv=list(argv), env=dict(env), cwd=os.fspath(cwd))
        self.findings[node] = answer.get("finding")
        return int(answer["exit"])

    def signal(self, number: int, nodes: Sequence[int] | None = None) -> None:
        """To the commands that run: the polite way, they decide what to do."""
        self._tell({"do": "signal", "number": int(number)}, nodes)

    def stop(self, grace_seconds: float, nodes: Sequence[int] | None = None) -> None:
        """End the commands that run: SIGTERM, and after `grace_seconds` SIGKILL to all that they started."""
        self._tell({"do": "stop", "grace": grace_seconds}, nodes)

    def _tell(self, message: dict[str, Any], nodes: Sequence[int] | None) -> None:
        for node in self.nodes if nodes is None else nodes:
            self._subtree.send({**message, "to": node, "re": 0})

    async def _receive(self, message: dict[str, Any]) -> None:
        node = message["from"]
        if "lines" in message:
            await self._on_output(node, message["stream"], message["lines"])
        elif "joined" in message:
            self._joined.add(node)
        elif "unreachable" in message:
            self.unreachable[node] = str(message["unreachable"])
            self.returncodes[node] = message.get("returncode")
        elif "lost" in message:
            self._lost[node] = str(message["lost"])
            for waiting_for, future in list(self._waiting.values()):
                if waiting_for == node and not future.done():
                    future.set_exception(NodeLost(node, self._lost[node]))
        else:
            asked = self._waiting.get(message.get("re", 0))
            if asked is not None and asked[0] == node and not asked[1].done():
                asked[1].set_result(message)
