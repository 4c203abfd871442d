"""Ports of this machine, for processes that meet on it alone."""

from __future__ import annotations

import socket


def free_port() -> int:
    """One that nobody has on the loopback interface. Somebody else may take it until it is used."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
