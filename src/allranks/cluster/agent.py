"""The program that stands on a remote node for its head: `python -m allranks.cluster.agent`.

It starts the command that it is given, hands on its output, and sees to it that nothing is left when the head is gone:
once its control channel ends, or is silent for SILENCE_SECONDS, the job gets SIGTERM and, GRACE_SECONDS later, SIGKILL.
In a tree it is also the head of agents of its own. Standard library only, and quick to start; `protocol` has the words.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import allranks
from allranks.cluster import protocol
from allranks.cluster.descendants import end_descendants
from allranks.cluster.guardian import guard, has_lost_guardian
from allranks.cluster.handshake import NotProven, shake_hands
from allranks.cluster.listening import Listener, PortTaken, reach
from allranks.cluster.not_reached import why_not_reached
from allranks.cluster.protocol import (
    FINDING_BYTES,
    FINDING_FD,
    GRACE_SECONDS,
    SILENCE_SECONDS,
    Malformed,
    encode,
    read_message,
)
from allranks.cluster.running_command import CannotStart, RunningCommand
from allranks.cluster.subtree import Subtree
from allranks.cluster.transports import open_link
from allranks.entry_points import refuse_by_hand

Message = dict[str, Any]
_CONNECT_SECONDS = 5.0


class Refused(Exception):
    """Why a request was not done; told to the head."""


class Agent:
    """Serves one head over a pair of streams until it says goodbye or is lost."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._guardian = os.getppid()
        self._node: int | None = None  # the head's number for this node: comes with the first request
        self._running: RunningCommand | None = None
        self._starting = asyncio.Lock()  # a signal that follows a command at its heels must find it
        self._listener: Listener | None = None
        self._subtree = Subtree(open_link, self._send)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Returns when the head has gone and nothing that it asked for runs any more."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            asyncio.get_running_loop().add_signal_handler(number, self._pass_on, number)
        try:
            hello = {"allranks": allranks.__version__, "hostname": socket.gethostname(), "pid": os.getpid()}
            await self._send({"allranks_agent": protocol.VERSION, **hello})
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    message = await read_message(self._reader)
                if message is None:
                    break
                await self._receive(message)
        except (TimeoutError, OSError):
            pass  # the head is lost
        except Malformed as error:
            print(f"allranks agent: {error}", file=sys.stderr, flush=True)
        finally:
            await self._end()

    async def _end(self) -> None:
        self._writer.close()  # how a job ends that nobody waits for is no answer any more
        # The agents below notice at once that this one lets go; their jobs end while ours does.
        closing = asyncio.create_task(self._subtree.close())
        async with self._starting:
            running = self._running
        if running is not None:
            await running.end(GRACE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await closing
        await end_descendants((), 0)

    async def _receive(self, message: Message) -> None:
        do, node = message.get("do"), message.get("to", self._node)
        if do == "ping":
            self._writer.write(encode({"pong": True}))
        elif self._node not in (None, node):
            self._subtree.send(message)
        else:
            self._node = node
            task = asyncio.create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Message) -> None:
        act = _REQUESTS.get(str(message.get("do")))
        try:
            if act is None:
                raise Refused(f"this agent does not know {message.get('do')!r}")
            answer = await act(self, message)
        except (Refused, CannotStart, PortTaken) as error:
            answer = {"error": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            answer = {"error": f"a malformed request: {type(error).__name__}: {error}"}
        await self._send({"from": self._node, "re": message.get("re"), **answer})

    async def _send(self, message: Message) -> None:
        self._writer.write(encode(message))
        with contextlib.suppress(OSError):  # the head has gone: the reader sees it too
            await self._writer.drain()

    def _pass_on(self, number: int) -> None:
        """A signal from outside, such as Slurm's before the time limit: the job decides, as if it had got it itself."""
        if self._running is None or has_lost_guardian(self._guardian):
            self._reader.feed_eof()
        else:
            self._running.signal(number)

    async def _account(self, message: Message) -> Message:
        from allranks.cluster.gather import gather_account

        account = await asyncio.to_thread(gather_account)  # waking the GPUs' driver may take seconds
        return {"account": account.to_message()}

    async def _listen(self, message: Message) -> Message:
        await self._stop_listening(message)
        self._listener = await Listener.open(int(message["port"]))
        return {"token": self._listener.token}

    async def _stop_listening(self, message: Message) -> Message:
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        return {}

    async def _reach(self, message: Message) -> Message:
        seconds = float(message["seconds"])
        return {"reached": await reach(message["addresses"], int(message["port"]), message["token"], seconds)}

    async def _run(self, message: Message) -> Message:
        async with self._starting:
            if self._running is not None:
                raise Refused("a command is running on this node already")
            argv, env, cwd = message["argv"], message["env"], message["cwd"]
            end, fd = os.pipe()
            try:
                env = {**env, FINDING_FD: str(fd)}
                self._running = running = await RunningCommand.start(
                    argv, env, cwd, keep=self._subtree.process_ids, pass_fds=(fd,)
                )
            except BaseException:
                os.close(end)
                raise
            finally:
                os.close(fd)

        async def on_output(stream: str, lines: list[str]) -> None:
            await self._send({"from": self._node, "re": message.get("re"), "stream": stream, "lines": lines})

        try:
            return {"exit": await running.finish(on_output), "finding": _left_in(end)}
        finally:
            self._running = None
            os.close(end)

    async def _signal(self, message: Message) -> Message:
        async with self._starting:
            if self._running is not None:
                self._running.signal(int(message["number"]))
        return {}

    async def _stop(self, message: Message) -> Message:
        async with self._starting:
            running = self._running
        if running is not None:
            await running.end(float(message["grace"]))
        return {}

    async def _adopt(self, message: Message) -> Message:
        await self._subtree.adopt(message["nodes"], message["transport"])
        return {}


_REQUESTS: dict[str, Callable[[Agent, Message], Awaitable[Message]]] = {
    "account": Agent._account,
    "listen": Agent._listen,
    "stop-listening": Agent._stop_listening,
    "reach": Agent._reach,
    "run": Agent._run,
    "signal": Agent._signal,
    "stop": Agent._stop,
    "adopt": Agent._adopt,
}


def main() -> None:
    """Serve the head at the other end of stdin and stdout, or of the connection that `--connect` describes."""
    parser = argparse.ArgumentParser(prog="python -m allranks.cluster.agent", description=__doc__)
    parser.add_argument("--connect", metavar="FILE", help="Connect to the head that wrote FILE.")
    path = parser.parse_args().connect
    if path is None and not _is_pipe(0):
        refuse_by_hand("allranks.cluster.agent", "`allranks train --hosts`")
    guard()
    asyncio.run(_serve_on_pipes() if path is None else _serve_on_connection(Path(path)))


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _left_in(pipe: int) -> object:
    """What a command that has ended has left for the head; None if nothing that can be read."""
    os.set_blocking(pipe, False)
    try:
        return json.loads(os.read(pipe, FINDING_BYTES))
    except (OSError, ValueError, RecursionError):
        return None


async def _serve_on_pipes() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=protocol.REQUEST_BYTES)
    # What a library prints must not end up among the messages.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, flow = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, out)
    await Agent(reader, asyncio.StreamWriter(transport, flow, None, loop)).serve()


async def _serve_on_connection(path: Path) -> None:
    said = f"allranks agent on {socket.gethostname()}:"
    try:
        instructions = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{said} {path} cannot be read ({error}): do all nodes share {path.parent}?")
    failures = []
    for address, port in instructions["addresses"]:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(address, port, limit=protocol.REQUEST_BYTES)
            await shake_hands(reader, writer, instructions["token"], "agent")
        except (OSError, TimeoutError, NotProven) as error:
            failures.append(f"{address} port {port}: {why_not_reached(error)}")
            continue
        await Agent(reader, writer).serve()
        return
    sys.exit(f"{said} the head cannot be reached at {'; '.join(failures) or 'any address'}")


if __name__ == "__main__":
    main()
