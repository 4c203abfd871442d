"""At which addresses of this node will the ranks of other nodes look for its own? As NCCL and gloo choose them."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from allranks.cluster.interfaces import Interface, interfaces, select
from allranks.cluster.nccl_variables import settings
from allranks.cluster.network import GLOO_INTERFACE, NCCL_INTERFACE

# NCCL's order where nothing is set (ncclFindInterfaces in NCCL's src/misc/socket.cc).
NCCL_TRIES = ("ib", "^docker,lo,virbr", "docker", "lo", "virbr")
_FAMILIES = {"AF_INET": 4, "AF_INET6": 6}
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LINUX_DEFAULT = "32768 to 60999"


@dataclass(frozen=True)
class RankAddress:
    """Where ranks of a node listen: an address of `interface`, chosen by `library` (NCCL, gloo or both)."""

    address: str
    interface: str
    library: str
    mtu: int | None = None


def rank_addresses(
    env: Mapping[str, str] = os.environ,
    *,
    uses_nccl: bool,
    uses_gloo: bool,
    nics: Sequence[Interface] | None = None,
) -> list[RankAddress]:
    """The addresses that the ranks of this node will give to the others, with the environment that they get.

    A link-local one has the number of its interface behind `%`, as the other nodes will hear it.
    """
    nics = interfaces() if nics is None else nics
    libraries: dict[str, list[str]] = {}
    if uses_nccl and (nccl := _nccls_address(settings(env), nics)):
        libraries.setdefault(nccl, []).append("NCCL")
    if uses_gloo:
        libraries.setdefault(_gloos_address(env, nics), []).append("gloo")
    return [_described(address, " and ".join(names), nics) for address, names in libraries.items()]


def ephemeral_ports() -> str:
    """The ports that this node's kernel chooses from, as `32768 to 60999`."""
    with contextlib.suppress(OSError, ValueError):
        first, last = map(int, _PORT_RANGE.read_text().split())
        return f"{first} to {last}"
    return _LINUX_DEFAULT


def _nccls_address(told: Mapping[str, str], nics: Sequence[Interface]) -> str | None:
    pattern = told.get(NCCL_INTERFACE)
    family = _FAMILIES.get(told.get("NCCL_SOCKET_FAMILY", ""))
    for tried in (pattern,) if pattern else NCCL_TRIES:
        found = [
            address
            for nic in select(tried, nics)
            for address in nic.addresses
            if family in (None, _version(address)) and address != "::1"
        ]
        if found:
            # getifaddrs lists the IPv4 addresses of all interfaces before the first IPv6 one.
            return min(found, key=_version)
    return None


def _gloos_address(env: Mapping[str, str], nics: Sequence[Interface]) -> str:
    name = env.get(GLOO_INTERFACE, "").partition(",")[0]
    for nic in nics:
        if nic.name == name:
            return nic.addresses[0]
    # What the host's name leads to, if this host has it, else loopback (ProcessGroupGloo::createDefaultDevice).
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, target in socket.getaddrinfo(
            socket.gethostname(), None, type=socket.SOCK_STREAM
        ):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(target)
                return str(target[0])
    return "127.0.0.1"


def _described(address: str, library: str, nics: Sequence[Interface]) -> RankAddress:
    name = next((nic.name for nic in nics if address in nic.addresses), "lo")
    stats = psutil.net_if_stats().get(name)
    plain, _, scope = address.partition("%")
    if scope:
        with contextlib.suppress(OSError):
            address = f"{plain}%{socket.if_nametoindex(scope)}"
    return RankAddress(address, name, library, stats.mtu if stats else None)


def _version(address: str) -> int:
    return ipaddress.ip_address(address.partition("%")[0]).version
