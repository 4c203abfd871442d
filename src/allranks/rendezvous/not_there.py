"""Why this node does not reach node 0, as far as it can tell by itself, and what to look at."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

from allranks.cluster.interfaces import facing, interfaces, is_loopback
from allranks.cluster.not_reached import why_not_reached
from allranks.rendezvous.terms import Terms
from allranks.rendezvous.wire import WireError


class NeverThere(WireError):
    """What waiting does not change: it is so whether or not node 0 has been started."""


_OTHER_PORTS = (22, 7)
"""ssh, which firewalls leave open, and echo, which a host without one refuses since nothing listens there."""
_OTHER_SECONDS = 1.2
"""With one lost SYN."""


async def why_not_there(error: OSError, terms: Terms, host: str, seconds: float) -> WireError:
    """Of the connection from this node, `host`, to node 0, which was tried for `seconds`. It takes at most a little
    more than a second."""
    if isinstance(error, socket.gaierror):
        return (NeverThere if _is_final(error) else WireError)(
            f"the name {terms.address} is not known on {host}: name an address, or put it into /etc/hosts there"
        )
    if leads_back := await asyncio.get_running_loop().run_in_executor(None, _leads_back, terms.address, host):
        return NeverThere(f"{why_not_reached(error)}: {leads_back}")
    here = await asyncio.get_running_loop().run_in_executor(None, _of_this_node, terms.address, host)
    is_ours = error.errno is None and isinstance(error, TimeoutError)  # the kernel's own comes with a number
    why = f"no answer in {seconds:g} s" if is_ours else why_not_reached(error)
    if here:
        return NeverThere(f"{why}: {here}")
    if isinstance(error, ConnectionRefusedError):
        return WireError(f"{why}: is {terms.host} started, and with this {terms.port_option}?")
    return await _of_its_machine(terms, why) if is_ours else WireError(f"{why}: is this the address of {terms.host}?")


def _is_final(error: socket.gaierror, env: Mapping[str, str] = os.environ) -> bool:
    """Whether a name will still be unknown later: Kubernetes names a pod when it runs, and a server may be slow.

    https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
    """
    return error.errno == socket.EAI_NONAME and "KUBERNETES_SERVICE_HOST" not in env


def _leads_back(address: str, host: str) -> str:
    """That the name of node 0 means this node itself; "" where it does not."""
    with contextlib.suppress(OSError):
        meant = str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])
        if is_loopback(meant) and not is_loopback(address):
            return f"the name {address} means {meant} on {host}, which is {host} itself: mend /etc/hosts there"
    return ""


def _of_this_node(address: str, host: str) -> str:
    """What is wrong here: a link that is down. "" where nothing is."""
    with contextlib.suppress(OSError):
        meant = str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])
        way = facing(meant, interfaces())
        if way is not None and not way.is_running:
            return f"{way.name} of {host}, which leads there, has no link: look at its cable, and at its switch's port"
    return ""


async def _of_its_machine(terms: Terms, no_answer: str) -> WireError:
    """Whether that port is closed, or nothing answers there. Any answer of another port is one, a refusal too.

    A port that nobody listens at refuses: that one of a machine that answers says nothing is a firewall's doing.
    """
    ports = [port for port in _OTHER_PORTS if port != terms.port]
    answers = await asyncio.gather(*(_answers(terms.address, port) for port in ports))
    answering = [port for port, answer in zip(ports, answers, strict=True) if answer]
    if answering:
        return NeverThere(
            f"{no_answer}, though port {answering[0]} of {terms.address} answers: a firewall there or on the way drops "
            f"port {terms.port}; open it from this node to {terms.host}"
        )
    return WireError(
        f"{no_answer}, nor from port {ports[0]} of {terms.address}: is that machine up, is this the address of "
        f"{terms.host}, or does a firewall drop all that comes from this node?"
    )


async def _answers(address: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_OTHER_SECONDS):
            _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return True
    except OSError:  # TimeoutError is one: also one that says that no way leads there
        return False
    writer.close()
    return True
