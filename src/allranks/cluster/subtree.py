"""The agents below a process: the head, or in a tree another agent. Messages for them go down, theirs go up."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from allranks.cluster.link import Link, NotOpened
from allranks.cluster.protocol import PING_SECONDS, SILENCE_SECONDS, Malformed

Message = dict[str, Any]
OpenLink = Callable[[Message, Message], Awaitable[Link]]
"""(transport, node) -> a link to the node's agent. Raises NotOpened."""


class Subtree:
    """Opens links to nodes and keeps them. All that comes from below is given to `up`, which may make it wait."""

    def __init__(self, open_link: OpenLink, up: Callable[[Message], Awaitable[None]]) -> None:
        self._open_link, self._up = open_link, up
        self._routes: dict[int, Link] = {}
        self._links: dict[Link, list[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def send(self, message: Message) -> None:
        """To the node that `message["to"]` names; dropped if it is lost, which `up` was told."""
        link = self._routes.get(message["to"])
        if link is not None:
            link.send(message)

    def process_ids(self) -> set[int]:
        """Of the processes that lead to the nodes."""
        return {link.process.pid for link in self._links if link.process is not None}

    async def adopt(self, nodes: Sequence[Message], transport: Message) -> None:
        """Open links to `nodes`, directly or through each other; returns when each has `joined` or is `unreachable`."""
        if not self._tasks:
            self._spawn(self._ping())
        window = asyncio.Semaphore(transport["window"])
        flat = len(nodes) <= transport["flat"]
        groups = [[node] for node in nodes] if flat else _split(nodes, transport["width"])
        await asyncio.gather(*(self._attach(group, transport, window) for group in groups))

    async def close(self) -> None:
        """Let all agents go, at once; returns when they have ended, or had the time to."""
        self._closing = True
        self._routes.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # a link has one reader at a time
        await asyncio.gather(*(link.close() for link in self._links))
        self._links.clear()

    async def _attach(self, group: Sequence[Message], transport: Message, window: asyncio.Semaphore) -> None:
        """Open a link to the first of `group`, which then adopts the others."""
        first, *rest = group
        try:
            async with window:
                if self._closing:
                    return
                link = await self._open_link(transport, first)
        except NotOpened as error:
            why = {"unreachable": str(error), "returncode": error.returncode}
            await self._up({"from": first["node"], **why})
            # Two others take its place, so that even a rack that is gone costs few time-outs one after the other.
            middle = (len(rest) + 1) // 2
            halves = [half for half in (rest[:middle], rest[middle:]) if half]
            await asyncio.gather(*(self._attach(half, transport, window) for half in halves))
            return
        if self._closing:
            await link.abort()
            return
        below = [node["node"] for node in group]
        self._links[link] = below
        self._routes.update(dict.fromkeys(below, link))
        await self._up({"from": first["node"], "joined": link.hello})
        adopted = asyncio.Event()
        self._spawn(self._listen(link, below, adopted))
        if rest:
            link.send({"do": "adopt", "to": first["node"], "re": -1, "nodes": rest, "transport": transport})
            await adopted.wait()

    async def _listen(self, link: Link, below: list[int], adopted: asyncio.Event) -> None:
        try:
            while (message := await link.receive()) is not None:
                if "pong" in message:
                    continue
                if message.get("from") not in below:
                    raise Malformed(f"a message of node {message.get('from')!r}, which is not below it")
                if message.get("re") == -1:
                    adopted.set()
                    continue
                await self._up(message)
            reason = await link.why_ended()
        except TimeoutError:
            reason = f"nothing was heard of it for {SILENCE_SECONDS:.0f} s"
        except Malformed as error:
            reason = f"its agent sent what is no message: {error}"
        adopted.set()
        for node in below:
            self._routes.pop(node, None)
            through = "" if node == below[0] else f"node {below[0]}, through which it was reached, is lost: "
            await self._up({"from": node, "lost": through + reason})
        await link.abort()
        self._links.pop(link, None)  # after it: should this be cancelled, `close` still sees the link

    async def _ping(self) -> None:
        while True:
            for link in self._links:
                link.send({"do": "ping"})
            await asyncio.sleep(PING_SECONDS)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _split(nodes: Sequence[Message], parts: int) -> list[Sequence[Message]]:
    """Neighbours together, in at most `parts` groups whose sizes differ by one at most."""
    size, more = divmod(len(nodes), parts)
    ends = [0]
    for index in range(min(parts, len(nodes))):
        ends.append(ends[-1] + size + (index < more))
    return [nodes[start:end] for start, end in itertools.pairwise(ends)]
