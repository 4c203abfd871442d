"""PBS's pbsdsh, inside a job: it starts a program on every node, but leads neither in nor out of it. So the agents
connect back to the head, by a file that only this user can read; the nodes must share the directory that holds it.

The connection is proven by a token from that file and is not encrypted, as srun's are not.
"""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from allranks.cluster.handshake import NotProven, shake_hands
from allranks.cluster.link import Link, NotOpened
from allranks.cluster.nodes import Host
from allranks.cluster.protocol import ANSWER_BYTES
from allranks.cluster.subtree import OpenLink
from allranks.cluster.transports.spec import Transport
from allranks.listing import printable
from allranks.parent import die_with_parent

_CLOSE_SECONDS = 10.0
_LOOK_SECONDS = 0.5
# pbsdsh shows nothing of what its tasks say: whoever cannot start an agent says so beside $1, its instructions.
_SCRIPT = (
    'words="$1.$(uname -n).failed"; shift; said=$("$1" -P -c "import allranks.cluster.agent" 2>&1) && exec "$@"; '
    'printf "%s\\n" "$said" | tail -n 1 > "$words.new"; mv "$words.new" "$words"'
)


@contextlib.asynccontextmanager
async def connections_back(way: Transport, hosts: Sequence[Host], directory: Path) -> AsyncIterator[OpenLink]:
    """Start agents on all nodes of the PBS job; yields what waits for the one of a node. Raises NotOpened.

    `directory` must be the same on all nodes.
    """
    path = directory / f".allranks-start-{secrets.token_hex(8)}.json"
    arrivals = _Arrivals(hosts, secrets.token_hex(32), path)
    server = await asyncio.start_server(arrivals.receive, host=None, port=0, limit=ANSWER_BYTES)
    _write_for_this_user_only(path, {"token": arrivals.token, "addresses": _own_addresses(server)})
    process = None
    try:
        process = await _start_pbsdsh(["sh", "-c", _SCRIPT, "sh", str(path), *way.agent, "--connect", str(path)])
        arrivals.launcher = asyncio.create_task(_until_end(process))

        async def open_link(transport: dict[str, Any], node: dict[str, Any]) -> Link:
            return await arrivals.wait_for(node["host"], way)

        yield open_link
    finally:
        for file in (path, *directory.glob(f"{path.name}.*")):
            file.unlink(missing_ok=True)
        server.close()
        if process is not None and arrivals.launcher is not None:
            await asyncio.wait([arrivals.launcher], timeout=_CLOSE_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            arrivals.launcher.cancel()


class _Arrivals:
    """Agents that have connected, by the host that they are on."""

    def __init__(self, hosts: Sequence[Host], token: str, path: Path) -> None:
        self.token, self._path = token, path
        self.launcher: asyncio.Task[str] | None = None
        self._links: dict[str, asyncio.Future[Link]] = {
            host.name: asyncio.get_running_loop().create_future() for host in hosts
        }

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await shake_hands(reader, writer, self.token, "head")
            link = Link(reader, writer)
            async with asyncio.timeout(10.0):
                await link.greet()
            name = await self._host_of(link, writer.get_extra_info("peername")[0])
        except (NotProven, NotOpened, TimeoutError):
            name = None
        # A node with several vnodes or mpiprocs gets several agents: the first one stays.
        if name is None or self._links[name].done():
            writer.close()
        else:
            self._links[name].set_result(link)

    async def wait_for(self, host: str, way: Transport) -> Link:
        assert self.launcher is not None
        link = self._links[host]
        either: list[asyncio.Future[Any]] = [link, self.launcher]
        deadline = time.monotonic() + way.connect_seconds
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(either, timeout=min(left, _LOOK_SECONDS), return_when=asyncio.FIRST_COMPLETED)
            if link.done():
                return link.result()
            if (words := self._words_of(host)) is not None:
                lacks = "has no allranks" if "No module named 'allranks" in words else "starts no agent"
                remedy = "install it there, or name another one with --python"
                raise NotOpened(None, f"{way.python} there {lacks} ({words}): {remedy}")
            if self.launcher.done():
                said = self.launcher.result()
                raise NotOpened(None, f"pbsdsh ended before the node's agent was there: {said}")
        raise NotOpened(
            None,
            f"its agent did not connect within {way.connect_seconds:.0f} s: are its instructions, in "
            f"{self._path.parent}, on a file system that all nodes share, and may it connect to this node? "
            "--remote-start ssh needs neither",
        )

    def _words_of(self, host: str) -> str | None:
        """The last words of a node that could not start its agent; None where there are none, or not yet."""
        for file in self._path.parent.glob(f"{self._path.name}.*.failed"):
            node = file.name.removeprefix(f"{self._path.name}.").removesuffix(".failed")
            if node.partition(".")[0] == host.partition(".")[0]:
                with contextlib.suppress(OSError):
                    return printable(file.read_text(errors="replace").strip() or "it says nothing", 300)
        return None

    async def _host_of(self, link: Link, peer: str) -> str | None:
        """The host as the node file names it: with or without a domain, or by the address that the name has here."""
        said = str(link.hello.get("hostname", ""))
        for name in self._links:
            if said in (name, name.partition(".")[0]) or name == said.partition(".")[0]:
                return name
        loop = asyncio.get_running_loop()
        for name in self._links:
            with contextlib.suppress(OSError):
                found = await loop.getaddrinfo(name, None)
                if any(address[4][0] == peer.removeprefix("::ffff:") for address in found):
                    return name
        return None


def _own_addresses(server: asyncio.Server) -> list[tuple[str, int]]:
    from allranks.cluster.gather import addresses  # psutil: agents, which import this module too, start without it

    # With port 0, IPv4 and IPv6 have a port each.
    ports = {listening.family == socket.AF_INET6: listening.getsockname()[1] for listening in server.sockets}
    own = [one.address for one in addresses()]
    return [(address, ports[":" in address]) for address in own if (":" in address) in ports]


async def _start_pbsdsh(command: Sequence[str]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            "pbsdsh",
            "--",
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        raise NotOpened(None, f"pbsdsh cannot be started: {error.strerror}; try --remote-start ssh") from None


async def _until_end(process: asyncio.subprocess.Process) -> str:
    """The last words of pbsdsh, and its exit code."""
    assert process.stdout is not None
    tail = b""
    while chunk := await process.stdout.read(4096):
        tail = (tail + chunk)[-1000:]
    return f"{tail.decode('utf-8', 'backslashreplace').strip() or 'no word'} (exit code {await process.wait()})"


def _write_for_this_user_only(path: Path, content: dict[str, Any]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file)
