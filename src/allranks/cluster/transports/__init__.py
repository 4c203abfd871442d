"""How an agent comes to run on a node: ssh, srun, pbsdsh, or here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from allranks.cluster.link import Link, NotOpened, open_process
from allranks.cluster.nodes import Host
from allranks.cluster.subtree import OpenLink
from allranks.cluster.transports import ssh
from allranks.cluster.transports.pbsdsh import connections_back
from allranks.cluster.transports.spec import Transport
from allranks.cluster.transports.srun import srun_command

__all__ = ["Transport", "open_link", "opening"]

_RETRY_SECONDS = (1.0, 3.0)


@contextlib.asynccontextmanager
async def opening(transport: Transport, hosts: Sequence[Host]) -> AsyncIterator[OpenLink]:
    """Yields what opens a link to one of `hosts`. Raises NotOpened where none of them can be reached."""
    if transport.kind == "pbsdsh":
        async with connections_back(transport, hosts, Path.cwd()) as open_one:
            yield open_one
    else:
        yield open_link


async def open_link(transport: dict[str, Any], node: dict[str, Any]) -> Link:
    """Start an agent on `node` and wait for its hello. Both arguments are as they cross in a message: the fields of a
    `Transport` and of a `Host`. Raises NotOpened, whose text is for the user."""
    way = Transport(**transport)
    host = Host(node["host"], user=node.get("user"))
    for pause in (*_RETRY_SECONDS, None):
        try:
            return await open_process(_command(way, host), way.connect_seconds)
        except NotOpened as error:
            if pause is None or way.kind != "ssh" or not ssh.is_busy(error):
                raise NotOpened(error.returncode, _explain(way, error)) from None
        await asyncio.sleep(pause)
    raise AssertionError


def _command(way: Transport, host: Host) -> Sequence[str]:
    if way.kind == "ssh" and not ssh.is_this_machine(host):
        return ssh.ssh_command(host, way.agent)
    if way.kind == "srun":
        return srun_command(host, way.agent)
    return way.agent


def _explain(way: Transport, error: NotOpened) -> str:
    """In the user's terms, with the last words of ssh, srun or the remote shell."""
    said = "; ".join(error.tail.splitlines()[-3:])
    if "No module named" in error.tail:
        return f"{way.python} there has no allranks ({said}): install it there, or name another one with --python"
    if "nknown option: -P" in error.tail or "nknown option -P" in error.tail:
        return f"{way.python} there is older than 3.11 ({said}): name another one with --python"
    if error.returncode in (126, 127) or (way.kind == "srun" and "No such file" in error.tail):
        return f"there is no {way.python} ({said}): name the interpreter of that node with --python"
    if way.kind == "ssh" and error.returncode == ssh.FAILED:
        return ssh.explain(said)
    if error.returncode is None:
        return said
    return f"the agent ended with exit code {error.returncode}: {said or 'it said nothing'}"
