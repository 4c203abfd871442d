"""Output of many nodes on one terminal: a node's lines stay whole, and a terminal that stands still stops no pulse."""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Sequence

from allranks.observe import say

_WAITING = 256  # batches of lines that may wait for the terminal; then the nodes wait
_REMEMBERED = 1000  # lines of stderr; what another node has just said need not be read again for each of 64


class Screen:
    """Writes in a thread: after Ctrl-S, or into a pager, a write may take hours, and the nodes must hear from us."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._queue: asyncio.Queue[tuple[int, str, list[str]] | None] = asyncio.Queue(_WAITING)
        self._writer = asyncio.create_task(self._write_all())
        self._said = deque[str](maxlen=_REMEMBERED)
        self._erred = [False] * len(names)
        self._last_words = [deque[str](maxlen=1) for _ in names]

    async def show(self, node: int, stream: str, lines: list[str]) -> None:
        """Node 0's lines as they are, the others' with their node's name; of errors only what nobody has said."""
        if stream == "stderr":
            # An error's first line says what happened, the ones below it what to do.
            errors = [line for line in lines if line.startswith("error: ")]
            self._last_words[node].extend(errors or [line for line in lines if line.strip() and not self._erred[node]])
            self._erred[node] |= bool(errors)
            if node:
                lines = [line for line in lines if line not in self._said]
            self._said.extend(lines)
        if lines:
            await self._queue.put((node, stream, lines))

    def say(self, text: str) -> None:
        """A line of our own, when there is room for it."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait((0, "stdout", [text]))

    def last_words(self, node: int) -> str:
        """The last error that the node wrote to stderr, else its last line there."""
        return "".join(self._last_words[node])

    async def close(self) -> None:
        """Returns when all is written."""
        await self._queue.put(None)
        with contextlib.suppress(asyncio.CancelledError):
            await self._writer

    async def _write_all(self) -> None:
        while (batch := await self._queue.get()) is not None:
            node, stream, lines = batch
            prefix = f"{self._names[node]}: " if node else ""
            text = "\n".join(prefix + line for line in lines)
            await asyncio.to_thread(say, text, file=sys.stderr if stream == "stderr" else sys.stdout)
