"""What a node says about itself before anything is started on it."""

import ipaddress
import os
import platform
import socket
import sys
from typing import Any

import allranks
from allranks.cluster.gpus import count_gpus
from allranks.cluster.interfaces import interfaces


def gather_facts() -> dict[str, Any]:
    """Of this node, ready for JSON: host name, python, versions, number of GPUs and cores, addresses by interface."""
    return {
        "hostname": socket.gethostname(),
        "python": sys.executable,
        "python_version": platform.python_version(),
        "allranks": allranks.__version__,
        "gpus": count_gpus(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "addresses": addresses(),
    }


def addresses() -> list[dict[str, str]]:
    """`{"interface", "address"}` by which another node could reach this one, in the kernel's order."""
    return [
        {"interface": interface.name, "address": address}
        for interface in interfaces()
        if interface.is_running
        for address in interface.addresses
        if not _is_for_this_node_only(address)
    ]


def _is_for_this_node_only(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    # A link-local address means nothing without the interface of whoever uses it.
    return address.is_loopback or address.is_link_local
