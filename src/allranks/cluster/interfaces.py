"""The network interfaces of this node, and which of them NCCL would choose."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import psutil


@dataclass(frozen=True)
class Interface:
    """One interface with its addresses, IPv4 first. `is_running`: up, and with a carrier."""

    name: str
    addresses: tuple[str, ...]
    is_running: bool

    @property
    def has_address_for_others(self) -> bool:
        """Whether it has one that is not link-local: such a one is of no use on another node."""
        return not all(is_link_local(address) for address in self.addresses)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.addresses[:1]) or 'no address'}{'' if self.is_running else ', down'})"


def interfaces() -> list[Interface]:
    """All interfaces of this node that have an IP address, in the kernel's order."""
    running = {name for name, stats in psutil.net_if_stats().items() if stats.isup and "running" in stats.flags}
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        ips = [entry.address for entry in addresses if entry.family in (socket.AF_INET, socket.AF_INET6)]
        if ips:
            found.append(Interface(name, tuple(ips), name in running))
    # psutil sorts by kind of address; the kernel's index is the order in which NCCL tries them.
    order = {name: index for index, name in socket.if_nameindex()}
    return sorted(found, key=lambda interface: order.get(interface.name, len(order)))


def select(pattern: str, found: Sequence[Interface]) -> list[Interface]:
    """Those that NCCL would use with NCCL_SOCKET_IFNAME=`pattern`: running, and named by it, in order.

    A list of prefixes with commas; `=` before the list makes them exact names, `^` before all takes them out (NCCL user
    guide, Environment Variables; both signs hold for the whole list).
    """
    is_excluding = pattern.startswith("^")
    pattern = pattern.removeprefix("^")
    is_exact = pattern.startswith("=")
    names = [name.strip() for name in pattern.removeprefix("=").split(",") if name.strip()]

    def named(interface: Interface) -> bool:
        return interface.name in names if is_exact else interface.name.startswith(tuple(names))

    return [interface for interface in found if interface.is_running and named(interface) != is_excluding]


def facing(address: str, found: Sequence[Interface]) -> Interface | None:
    """The interface by which this node reaches `address` (a name or number), as the kernel routes it; sends nothing."""
    try:
        for family, kind, protocol, _, target in socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                own = probe.getsockname()[0]
            return next((interface for interface in found if own in interface.addresses), None)
    except OSError:
        pass
    return None


def own_name_is_loopback() -> bool:
    """Whether this host's name leads nowhere or to itself only, as Debian's 127.0.1.1 does.

    gloo offers the address of the host's name to the other ranks, unless it is told an interface.
    """
    try:
        first = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0]
    except OSError:
        return True
    return is_loopback(str(first[4][0]))


@lru_cache(maxsize=4096)
def is_loopback(address: str) -> bool:
    """Whether a name or number of an address can only mean this host."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


@lru_cache(maxsize=4096)
def is_link_local(address: str) -> bool:
    """Whether an address means something on its own link only."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_link_local
    except ValueError:
        return False


def listed(found: Sequence[Interface]) -> str:
    """For a message: `eth0 (10.0.0.1), lo (127.0.0.1)`."""
    return ", ".join(map(str, found)) or "none with an IP address"
