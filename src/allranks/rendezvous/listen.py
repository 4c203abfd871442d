"""The rendezvous port on the node that the others come to."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

import psutil

from allranks.cluster.interfaces import is_loopback
from allranks.errors import UsageError
from allranks.exit_codes import REFUSED
from allranks.rendezvous.terms import Terms


class PortInUse(UsageError):
    """Something listens there already."""

    exit_code = REFUSED


class UnknownAddress(UsageError):
    """The name of node 0 leads nowhere on node 0 itself."""

    exit_code = REFUSED


def listen(terms: Terms) -> tuple[socket.socket, str]:
    """A listening socket on the address that the others use; on all, and with a note, if it is no address of ours."""
    try:
        family, address = _resolved(terms.address, terms.port)
    except OSError as error:
        raise UnknownAddress(
            f"{terms.address_option} {terms.address}: {error.strerror or error}; give a name or an address of "
            f"{terms.host} that every node can resolve"
        ) from None
    named = terms.address != address
    note = ""
    if not _is_own(address):
        own_ones = ", ".join(sorted(item for item in _own_addresses() if _is_ip(item)))
        note = (
            f"{terms.address_option} {terms.address} is no address of this machine, which has {own_ones}: is this "
            f"{terms.host}? It is right only behind an address translation"
        )
    if note or (named and is_loopback(address)):
        # Behind an address translation, or Debian's 127.0.1.1 for the own name, which nobody else could reach.
        address = "::" if family == socket.AF_INET6 else ""
    listener = socket.socket(family, socket.SOCK_STREAM)
    # The launcher's store binds the same port while our connections go on.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, terms.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise UsageError(f"{terms.host} cannot listen on {terms.endpoint}: {error.strerror}") from None
        raise PortInUse(
            f"{terms.host} cannot listen on {terms.endpoint}: the port is in use{_user_of(terms.port)}; stop that "
            f"process, give this node its own --node-rank if that is node 0, or take another {terms.port_option} on "
            "all nodes"
        ) from None
    listener.setblocking(False)
    return listener, note


def is_here(address: str) -> bool:
    """Whether a name or number of an address leads to this machine, as far as it knows itself."""
    with contextlib.suppress(OSError):
        return _is_own(_resolved(address, 0)[1])
    return False


def _resolved(address: str, port: int) -> tuple[socket.AddressFamily, str]:
    family, *_, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    return family, str(target[0])


def _is_own(address: str) -> bool:
    # A name that means loopback here (Debian's 127.0.1.1) is this host's own, whatever lo has.
    return is_loopback(address) or address.partition("%")[0] in _own_addresses()


def _own_addresses() -> set[str]:
    return {item.address.partition("%")[0] for items in psutil.net_if_addrs().values() for item in items}


def _is_ip(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_link_local
    except ValueError:  # a hardware address
        return False


def _user_of(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN and connection.pid
            if listening and connection.laddr and connection.laddr[1] == port:
                return f" by pid {connection.pid} ({' '.join(psutil.Process(connection.pid).cmdline()[:4])[:80]})"
    return ""
