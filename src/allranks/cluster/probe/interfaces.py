"""The network interfaces of this node, as the kernel shows them."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node

_LOOPBACK, _INFINIBAND = 772, 32  # ARPHRD_ of linux/if_arp.h, as in /sys/class/net/*/type
_RTM_NEWADDR, _RTM_GETADDR, _NLMSG_DONE = 20, 22, 3  # rtnetlink(7), netlink(7)
_ROOT_AND_MATCH = 0x300 | 1  # NLM_F_DUMP and NLM_F_REQUEST
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def look_at_interfaces(node: Node, reporter: Reporter) -> Iterator[Found]:
    # A container may show another namespace's /sys: only an interface with the same number is the same one.
    indices = {name: index for index, name in socket.if_nameindex()} if node.is_live else {}
    names = sorted(indices or node.names("/sys/class/net"), key=lambda name: indices.get(name, 0) or _index(node, name))
    addresses = (
        _addresses({index: name for name, index in indices.items()}) if node.is_live else node.recorded["addresses"]
    )
    default = _default_routes(node)
    found = []
    for name in names:
        is_ours = not indices or _index(node, name) == indices[name]
        entry = {"name": name, "default_route": name in default, "addresses": addresses.get(name, [])}
        reporter.doing(name)  # a driver is asked for the speed
        found.append({**entry, **(_from_sys(node, name) if is_ours else {})})
    yield {"interfaces": found}


def _index(node: Node, name: str) -> int:
    return node.number(f"/sys/class/net/{name}/ifindex") or 0


def _from_sys(node: Node, name: str) -> dict[str, Any]:
    folder = f"/sys/class/net/{name}"
    carrier, speed = node.number(f"{folder}/carrier"), node.number(f"{folder}/speed")
    flags = node.number(f"{folder}/flags")
    state = node.text(f"{folder}/operstate")
    if state == "unknown" and flags is not None:  # loopback and tunnels: their drivers say no more
        state = "up" if flags & 1 else "down"
    return {
        "state": state,
        "carrier": None if flags is None else bool(carrier),  # one that is down does not answer
        "speed_mbits": speed if speed is not None and speed > 0 else None,
        "mtu": node.number(f"{folder}/mtu"),
        "driver": node.points_to(f"{folder}/device/driver"),
        "kind": _kind(node, folder),
    }


def _kind(node: Node, folder: str) -> str:
    hardware = node.number(f"{folder}/type")
    if hardware == _LOOPBACK:
        return "loopback"
    if hardware == _INFINIBAND:
        return "infiniband"
    declared = re.search(r"^DEVTYPE=(\w+)$", node.text(f"{folder}/uevent") or "", re.MULTILINE)
    if declared and declared[1] in ("bond", "bridge", "vlan"):
        return declared[1]
    if node.exists(f"{folder}/bonding"):
        return "bond"
    if node.exists(f"{folder}/bridge"):
        return "bridge"
    if node.exists(f"{folder}/device"):
        return "physical"
    # The other end has another number, in another namespace; a tunnel's is 0.
    other, own = node.number(f"{folder}/iflink"), node.number(f"{folder}/ifindex")
    return "veth" if declared is None and other and other != own else "virtual"


def _default_routes(node: Node) -> set[str]:
    found = set()
    for line in (node.text("/proc/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == words[7] == "00000000":
            found.add(words[0])
    for line in (node.text("/proc/net/ipv6_route") or "").splitlines():
        words = line.split()
        if len(words) == 10 and words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
            found.add(words[9])
    return found


def _addresses(names: dict[int, str]) -> dict[str, list[dict[str, Any]]]:
    """Addresses of each interface, IPv4 first, as the kernel lists them over rtnetlink."""
    found: dict[str, list[dict[str, Any]]] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        # struct nlmsghdr, then struct ifaddrmsg of any family.
        kernel.send(struct.pack("=IHHIIBBBBI", 24, _RTM_GETADDR, _ROOT_AND_MATCH, 1, 0, socket.AF_UNSPEC, 0, 0, 0, 0))
        while True:
            data = kernel.recv(2**17)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _NLMSG_DONE:
                    for of_one in found.values():
                        of_one.sort(key=lambda entry: ":" in entry["address"])
                    return found
                if kind != _RTM_NEWADDR or length < 24:
                    raise OSError("the kernel did not list its addresses")
                _take(data[16:length], names, found)
                data = data[(length + 3) & ~3 :]


def _take(message: bytes, names: dict[int, str], found: dict[str, list[dict[str, Any]]]) -> None:
    """One struct ifaddrmsg and its attributes. A point-to-point link has its own address as the local one."""
    family, prefix, _, _, index = struct.unpack_from("=BBBBI", message)
    attributes = {}
    rest = message[8:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        if length < 4:
            break
        attributes[kind] = rest[4:length]
        rest = rest[(length + 3) & ~3 :]
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if raw and family in (socket.AF_INET, socket.AF_INET6) and index in names:
        address = str(ipaddress.ip_address(raw))
        found.setdefault(names[index], []).append({"address": address, "prefix": prefix})
