"""Over which addresses this rank has talked to the others, and by what."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from allranks.cluster.identity import Identity
from allranks.cluster.interfaces import interfaces
from allranks.listing import printable
from allranks.observe import RunDir
from allranks.observe.nccl_log import read_log

_MOST_NAME = 64


@dataclass(frozen=True)
class Transport:
    """`local`: this rank's address -> its interface; `remote`: the addresses that it has connections with, those of
    torch's store left out. `nccl`: the network that NCCL says it uses, or several; None where it said nothing."""

    backend: str = ""
    local: Mapping[str, str] = field(default_factory=dict)
    remote: tuple[str, ...] = ()
    nccl: str | None = None

    def to_message(self) -> dict[str, Any]:
        return {**asdict(self), "remote": list(self.remote)}


def transport(identity: Identity, run_dir: RunDir, *, uses_nccl: bool) -> Transport:
    """What this process is connected with now, while its process groups are there."""
    names = {address: nic.name for nic in interfaces() for address in nic.addresses}
    local, remote = {}, set()
    for one in psutil.Process().net_connections(kind="tcp"):
        is_store = one.raddr and identity.master_port in (one.laddr.port, one.raddr.port)
        if one.status == psutil.CONN_ESTABLISHED and one.raddr and not is_store:
            own = _plain(one.laddr.ip)
            local[own] = names.get(own, "lo" if ipaddress.ip_address(own).is_loopback else "")
            remote.add(_plain(one.raddr.ip))
    log = _nccl_log(run_dir, identity) if uses_nccl else None
    return Transport("nccl" if uses_nccl else "gloo", local, tuple(sorted(remote)), log)


def _plain(address: str) -> str:
    """Without the number of an interface; an IPv4 address in IPv6's clothes as the former."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def _nccl_log(run_dir: RunDir, identity: Identity) -> str | None:
    """The network that the newest log of this rank names."""
    pattern = f"node-*/nccl/rank-{identity.rank:05d}.*.log"
    found = sorted((run_dir.path / "logs").glob(pattern), key=lambda path: path.stat().st_mtime)
    return network_in(found[-1]) if found else None


def network_in(log: Path) -> str | None:
    """The network that a log of NCCL's names, such as IB or Socket; with different ones for its communicators all."""
    names = dict.fromkeys(name for process in read_log(log) for name in process.networks)
    return printable(", ".join(names), _MOST_NAME) or None
