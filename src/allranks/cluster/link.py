"""An open session with the agent of one node, over the pipes of a process (ssh, srun, local) or a TCP connection."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any

from allranks.cluster.protocol import (
    ANSWER_BYTES,
    GRACE_SECONDS,
    HELLO,
    SILENCE_SECONDS,
    VERSION,
    Malformed,
    decode,
    encode,
    read_message,
)
from allranks.parent import die_with_parent

_TAIL_LINES, _TAIL_CHARACTERS = 20, 500
_CLOSE_SECONDS = GRACE_SECONDS + 5.0  # an agent that was told goodbye ends its job first


class NotOpened(Exception):
    """No agent answered. `returncode`: of the process that leads to it, None while it ran; `tail`: its last words."""

    def __init__(self, returncode: int | None, tail: str) -> None:
        super().__init__(tail)
        self.returncode, self.tail = returncode, tail


class Link:
    """Messages to and from one agent. `hello` is what it said first."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: asyncio.subprocess.Process | None = None,
    ) -> None:
        self._reader, self._writer, self.process = reader, writer, process
        self.hello: dict[str, Any] = {}
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._errors = asyncio.create_task(self._keep_errors())

    def send(self, message: dict[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the agent has gone. Raises TimeoutError when it is silent for too long, and
        Malformed. Only time spent in here counts: a head that is slow to take output is no reason to give a node up."""
        # Not asyncio.wait_for, which until Python 3.12 forgets that it was cancelled when a message comes just then.
        async with asyncio.timeout(SILENCE_SECONDS):
            return await read_message(self._reader)

    async def greet(self) -> None:
        """Read until the agent's hello; keep what came before it. Raises NotOpened."""
        while True:
            try:
                line = await self._reader.readline()
            except (ValueError, OSError):
                line = b""
            noise, found, _ = line.partition(HELLO)
            self._remember(noise)
            if found:
                break
            if not line:
                await self._ended()
                raise NotOpened(self.process.returncode if self.process else None, self.tail)
        try:
            self.hello = decode(line[len(noise) :])
        except Malformed as error:
            raise NotOpened(None, str(error)) from None
        if self.hello["allranks_agent"] != VERSION:
            raise NotOpened(None, f"it has allranks {self.hello.get('allranks')}, whose agent speaks another protocol")

    async def close(self) -> None:
        """Say goodbye and wait until the agent has ended its job and itself; then end what leads to it."""
        with contextlib.suppress(OSError):
            self._writer.close()
        if self.process is None:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._until_end()
        else:
            # Its last words are of no interest, but a full pipe would keep it from ending.
            drain = asyncio.create_task(self._until_end())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self.process.wait()
            drain.cancel()
        await self.abort()

    async def abort(self) -> None:
        """End it at once."""
        with contextlib.suppress(OSError):
            self._writer.close()
        if self.process is not None:
            # Only this one: an agent of the local transport, the child of it, then ends its job as it should.
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            # Others may hold the pipes open, such as a ControlMaster that ssh left behind; asyncio has no public way to
            # let go of them.
            self.process._transport.close()  # type: ignore[attr-defined]
        self._errors.cancel()
        await asyncio.sleep(0)

    async def why_ended(self) -> str:
        """Why `receive` returned None, in the words of ssh or srun."""
        await self._ended()
        return self.tail or "its connection ended"

    @property
    def tail(self) -> str:
        """The last lines that are not of the protocol."""
        return "\n".join(self._tail)

    async def _ended(self) -> None:
        if self.process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.process.wait()
                await asyncio.wait([self._errors], timeout=1.0)

    async def _until_end(self) -> None:
        while await self._reader.read(65536):
            pass

    async def _keep_errors(self) -> None:
        if self.process is not None and self.process.stderr is not None:
            while chunk := await self.process.stderr.read(4096):
                self._remember(chunk)

    def _remember(self, text: bytes) -> None:
        for line in text.decode("utf-8", "backslashreplace").splitlines():
            if line.strip():
                self._tail.append(line[:_TAIL_CHARACTERS])


async def open_process(command: Sequence[str], timeout_seconds: float) -> Link:
    """Start `command`, which leads to an agent on its stdin and stdout. Raises NotOpened, and TimeoutError."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=ANSWER_BYTES,
            # Ctrl-C on the terminal is for the head alone; without it, the connection must end too.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        raise NotOpened(None, f"{command[0]} cannot be started: {error.strerror}") from None
    assert process.stdout is not None and process.stdin is not None
    link = Link(process.stdout, process.stdin, process)
    try:
        async with asyncio.timeout(timeout_seconds):
            await link.greet()
    except BaseException as error:
        await link.abort()
        if isinstance(error, TimeoutError):
            said = f"; it said: {link.tail}" if link.tail else ""
            raise NotOpened(None, f"no answer within {timeout_seconds:.0f} s{said}") from None
        raise
    return link
