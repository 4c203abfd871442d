"""The TCP connections that this process has open, by interface: which network its ranks really use."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence

import psutil

from allranks.cluster.interfaces import Interface, interfaces, is_link_local, is_loopback


def open_connections(
    *, but_ports: Sequence[int] = (), nics: Sequence[Interface] | None = None
) -> list[tuple[str, str, str, int]] | None:
    """(interface, own address, other address, how many) of each; None where this system does not tell.

    `but_ports`: those from or to these ports are left out.
    """
    nics = interfaces() if nics is None else nics
    names = {_plain(address): nic.name for nic in nics for address in nic.addresses}
    try:
        found = psutil.Process().net_connections(kind="tcp")
    except (psutil.Error, OSError, ValueError, AttributeError):
        return None
    counted: Counter[tuple[str, str, str]] = Counter()
    for one in found:
        if one.status != psutil.CONN_ESTABLISHED or one.family not in (socket.AF_INET, socket.AF_INET6):
            continue
        if not one.raddr or {one.laddr.port, one.raddr.port} & set(but_ports):
            continue
        local, remote = _plain(one.laddr.ip), _plain(one.raddr.ip)
        counted[names.get(local, "lo" if is_loopback(local) else ""), local, remote] += 1
    return [(*key, number) for key, number in sorted(counted.items())]


def own_addresses(nics: Sequence[Interface] | None = None) -> list[str]:
    """This node's addresses by which others can mean it: none of loopback or of one link only."""
    nics = interfaces() if nics is None else nics
    every = [_plain(address) for nic in nics if nic.is_running for address in nic.addresses]
    return [address for address in every if not is_loopback(address) and not is_link_local(address)]


def _plain(address: str) -> str:
    """Without the interface of a link-local address, and an IPv4 address that IPv6 wraps as itself."""
    return address.partition("%")[0].removeprefix("::ffff:")
