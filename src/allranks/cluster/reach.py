"""At which address do all other nodes reach node 0? Not guessed: node 0 listens and every other node connects."""

import contextlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allranks.cluster.account import NodeAccount
from allranks.cluster.fanout import Fanout, NodeLost, NodeRefused
from allranks.errors import RefusedError
from allranks.listing import few

_TIMEOUT_SECONDS = 5.0  # a packet lost twice is sent again after 3 s
_SHOWN = 8
_REMEDY = "name an address with --master-addr, another port with --master-port, or list another node first"
# Bridges of containers and virtual machines: the same address on every node, and no way out.
_VIRTUAL = ("docker", "br-", "virbr", "veth", "cni", "flannel", "cali", "podman", "lxc", "tun", "tap")


@dataclass(frozen=True)
class Address:
    """Where the nodes meet, and by which interfaces: node 0's own, and the other nodes' by their numbers."""

    address: str
    port: int
    interface: str
    interfaces: Mapping[int, str]


class CannotMeet(RefusedError):
    """No address of node 0 is reached by all. `reasons`: why, by the nodes that are to blame as far as can be told."""

    def __init__(self, message: str, reasons: Mapping[int, str]) -> None:
        super().__init__(message)
        self.reasons = reasons


async def find_address(
    fanout: Fanout, accounts: Sequence[NodeAccount], port: int, wanted: str | None = None
) -> Address:
    """The first address of node 0, or `wanted`, that every other node connects to at `port`.

    `accounts` are those of all nodes, in order. Raises RefusedError that names each pair that cannot talk.
    """
    own = {one.address: one.interface for one in accounts[0].addresses}
    candidates = [wanted] if wanted else _ranked(own, fanout.hosts[0].name)
    if not candidates:
        raise RefusedError(f"{fanout.hosts[0]} (node 0) has no address that another node could reach")
    others = range(1, len(fanout.hosts))
    try:
        token = (await fanout.ask(0, "listen", port=port))["token"]
        answers = await fanout.ask_all(
            "reach", others, addresses=candidates, port=port, token=token, seconds=_TIMEOUT_SECONDS
        )
    except NodeRefused as error:
        raise RefusedError(
            f"{fanout.hosts[error.node]} cannot open port {port}: {error}; end what holds it (`ss -ltnp`), or choose "
            "another with --master-port"
        ) from None
    except NodeLost as error:
        raise RefusedError(f"{fanout.hosts[error.node]} was lost: {error}") from None
    finally:
        with contextlib.suppress(NodeLost, NodeRefused):
            await fanout.ask(0, "stop-listening")
    reached = [answer["reached"] for answer in answers]
    for address in candidates:
        if all(answer[address]["ok"] for answer in reached):
            return Address(address, port, own.get(address, ""), _their_interfaces(address, reached, accounts))
    raise _nobody_meets(fanout, candidates, own, port, reached)


def _ranked(own: Mapping[str, str], name: str) -> list[str]:
    """Addresses by how likely they are the right one: the one that the user named, no bridges, IPv4 before IPv6."""

    def rank(address: str) -> tuple[bool, bool, bool]:
        return address != name, own[address].startswith(_VIRTUAL), ipaddress.ip_address(address).version == 6

    return sorted(own, key=rank)


def _their_interfaces(
    address: str, reached: Sequence[Mapping[str, Any]], accounts: Sequence[NodeAccount]
) -> dict[int, str]:
    return {node: accounts[node].interface_of(answer[address]["from"]) for node, answer in enumerate(reached, start=1)}


def _nobody_meets(
    fanout: Fanout,
    candidates: Sequence[str],
    own: Mapping[str, str],
    port: int,
    reached: Sequence[Mapping[str, Any]],
) -> CannotMeet:
    best = max(candidates, key=lambda address: sum(answer[address]["ok"] for answer in reached))
    lines: list[str] = []
    for address in [best, *(address for address in candidates if address != best)]:
        interface = f" ({own[address]})" if address in own else ""
        lines += [
            f"{fanout.hosts[node]} cannot reach {fanout.hosts[0]} at {_endpoint(address, port)}{interface}: "
            f"{answer[address]['reason']}{_advice(answer[address]['reason'])}"
            for node, answer in enumerate(reached, start=1)
            if not answer[address]["ok"]
        ]
    listed = few([f"\n  {line}" for line in lines], _SHOWN, between="", rest="\n  and {:,} more")
    message = f"the nodes cannot meet: no address of {fanout.hosts[0]} (node 0) is reached by all{listed}\n{_REMEDY}"
    apart = [node for node, answer in enumerate(reached, start=1) if not answer[best]["ok"]]
    # Where nobody reaches node 0 it may be its own fault.
    blamed = [0, *apart] if len(apart) == len(reached) else apart
    why = few([line for line in lines if f" {_endpoint(best, port)}" in line], _SHOWN, between="\n")
    return CannotMeet(message, dict.fromkeys(blamed, f"{why}\n{_REMEDY}"))


def _advice(reason: str) -> str:
    return ": a firewall?" if reason in ("timed out", "connection refused", "no route to host") else ""


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
