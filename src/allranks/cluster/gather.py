"""What this node says about itself before anything is started on it."""

from __future__ import annotations

import ipaddress
import platform
import socket
import sys

import allranks
from allranks.cluster.account import NodeAccount, NodeAddress
from allranks.cluster.cores import usable_cores
from allranks.cluster.gpus import count_gpus
from allranks.cluster.interfaces import interfaces


def gather_account(num_gpus: int | None = None) -> NodeAccount:
    """Where this node is found, what is installed and what it has; `num_gpus` where they have been counted."""
    return NodeAccount(
        host=socket.gethostname(),
        python=sys.executable,
        python_version=platform.python_version(),
        allranks=allranks.__version__,
        num_gpus=count_gpus() if num_gpus is None else num_gpus,
        num_cores=usable_cores(),
        addresses=addresses(),
    )


def addresses() -> tuple[NodeAddress, ...]:
    """By which another node could reach this one, in the kernel's order."""
    return tuple(
        NodeAddress(interface.name, address)
        for interface in interfaces()
        if interface.is_running
        for address in interface.addresses
        if not _is_for_this_node_only(address)
    )


def _is_for_this_node_only(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    # A link-local address means nothing without the interface of whoever uses it.
    return address.is_loopback or address.is_link_local
