"""Which interface the ranks of each node will use."""

from __future__ import annotations

import contextlib
import ipaddress

from allranks.cluster.interfaces import Interface, is_link_local, is_loopback, select
from allranks.cluster.node_report import NetworkInterface, NodeReport
from allranks.cluster.rank_addresses import NCCL_TRIES
from allranks.listing import printable
from allranks.preflight.check import Subject, kept
from allranks.preflight.effective import setting

_VIRTUAL = ("docker", "br-", "virbr", "cni", "flannel", "cali", "podman", "lxc", "lxd", "vmnet", "vboxnet")
_MANAGEMENT = ("cdc_ether", "cdc_ncm", "rndis_host", "cdc_subset")  # a network over USB: to a management controller


@kept
def chosen_interfaces(subject: Subject) -> dict[str, tuple[str, list[NetworkInterface]] | None]:
    return {node: _choice(subject, node, report) for node, report in subject.reported}


def _choice(subject: Subject, node: str, report: NodeReport) -> tuple[str, list[NetworkInterface]] | None:
    """What chooses the interface of a node's ranks, and those that it chooses; None where that is not known."""
    if report.interfaces is None:
        return None
    nics = {one.name or "": one for one in report.interfaces}
    found_there = [
        Interface(name, tuple(a.address for a in one.addresses or () if a.address), is_running(one))
        for name, one in nics.items()
        if one.addresses
    ]
    library = "NCCL" if subject.wanted.uses_nccl else "GLOO"
    variable = f"{library}_SOCKET_IFNAME"
    pattern = setting(subject, node, variable) or subject.wanted.interface
    if pattern and library == "GLOO" and pattern != subject.wanted.interface:
        pattern = f"={pattern.partition(',')[0]}"  # gloo takes exact names, and ranks use the first
    if pattern:
        return f"{variable}={pattern}", [nics[one.name] for one in select(pattern, found_there)]
    if library == "NCCL":
        for tried in NCCL_TRIES:
            if names := select(tried, found_there):
                return "NCCL's own choice", [nics[one.name] for one in names]
        return "NCCL's own choice", []
    if facing := [
        one for one in report.interfaces if is_running(one) and _faces(one, subject.wanted.master_addr, report)
    ]:
        return "the address at which the nodes meet", facing
    if any(_is_routed_to(one) for one in report.interfaces if is_running(one)):
        return None  # the other nodes are reached by routes of their own, which a report does not tell
    by_default = [one for one in report.interfaces if one.default_route and is_running(one) and one.addresses]
    return ("the default route", by_default) if by_default else None


def _faces(one: NetworkInterface, master: str | None, report: NodeReport) -> bool:
    """Whether the address at which the nodes meet is in a network of this interface's; gloo is told that interface."""
    targets = (report.names or {}).get(master or "") or ([master] if master else [])
    for own in one.addresses or ():
        if own.address and own.prefix is not None and not is_loopback(own.address):
            for target in targets:
                with contextlib.suppress(ValueError):  # a name that nobody resolved
                    network = ipaddress.ip_network(f"{own.address.partition('%')[0]}/{own.prefix}", strict=False)
                    if ipaddress.ip_address(target.partition("%")[0]) in network:
                        return True
    return False


def _is_routed_to(one: NetworkInterface) -> bool:
    """Whether it is a card of a fabric in which each node's address is a network by itself (/32, /128). Where the
    default route leads through it too, as on virtual machines of some clouds, that says all."""
    own = [each for each in one.addresses or () if each.address and not is_link_local(each.address)]
    return (
        one.kind in ("physical", "bond", "vlan", "infiniband")
        and not one.default_route
        and any(each.prefix == (128 if ":" in (each.address or "") else 32) for each in own)
    )


def is_running(one: NetworkInterface) -> bool:
    return one.state != "down" and one.carrier is not False


def first_interface(subject: Subject, node: str, report: NodeReport) -> NetworkInterface | None:
    """The one that the node's ranks will use."""
    by = chosen_interfaces(subject)[node]
    usable = [one for one in by[1] if address_for_others(one)] if by else []
    return usable[0] if usable else None


def address_for_others(one: NetworkInterface) -> str | None:
    """One that means something to other nodes."""
    addresses = [a.address for a in one.addresses or () if a.address and not is_link_local(a.address)]
    return addresses[0] if addresses else None


def shown_interface(one: NetworkInterface) -> str:
    details = [address_for_others(one) or "no address for others", "" if is_running(one) else "down"]
    return printable(f"{one.name} ({', '.join(filter(None, details))})", 256)


def is_lo(one: NetworkInterface) -> bool:
    return one.kind == "loopback" or is_loopback(address_for_others(one) or "")


def is_virtual(one: NetworkInterface) -> bool:
    return (one.name or "").startswith(_VIRTUAL)


def is_management(one: NetworkInterface) -> bool:
    return one.driver in _MANAGEMENT or (one.name or "").startswith(("idrac", "ilo", "bmc", "usb"))
