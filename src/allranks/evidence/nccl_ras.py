"""Asks NCCL's RAS service, which every NCCL process of a node knows (2.24 and newer), how the job's ranks are.

The protocol is that of NCCL's own client (src/ras/client.cc of NCCL 2.28): lines, and a status that ends with the
connection. JSON is there since 2.28.7; older versions refuse it and answer with a text.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

PORT = 28028
_PROTOCOL = 2
_MAX_BYTES = 4 * 2**20
_LINE_BYTES = 4096


def nccl_status(address: str | None = None, *, seconds: float = 3.0) -> dict[str, Any]:
    """{"json": …} or {"text": …}; {"why": …} where no status is to be had. `address` is NCCL_RAS_ADDR: HOST:PORT."""
    host, port = _where(address)
    deadline = time.monotonic() + seconds
    try:
        with socket.create_connection((host, port), timeout=min(1.0, seconds)) as connection:
            return _ask(connection, deadline)
    except (OSError, ValueError) as error:
        return {"why": f"NCCL's RAS service at {host}:{port}: {error}"}


def _ask(connection: socket.socket, deadline: float) -> dict[str, Any]:
    if not _say(connection, f"CLIENT PROTOCOL {_PROTOCOL}", deadline).upper().startswith("SERVER PROTOCOL "):
        raise ValueError("what listens there is no RAS service")
    left = max(1, int(deadline - time.monotonic()))
    _say(connection, f"TIMEOUT {left}", deadline)
    is_json = _say(connection, "SET FORMAT json", deadline).strip().upper() == "OK"
    connection.sendall(b"VERBOSE STATUS\n")
    text, is_whole = _rest(connection, deadline)
    if is_json and is_whole:
        with contextlib.suppress(ValueError):
            return {"json": json.loads(text)}
    return {"text": text}


def _say(connection: socket.socket, line: str, deadline: float) -> str:
    connection.sendall(f"{line}\n".encode())
    said = b""
    while not said.endswith(b"\n") and len(said) < _LINE_BYTES:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        if not (data := connection.recv(1)):  # not a byte more: the next answer is another's
            raise ValueError("the service closed the connection")
        said += data
    return said.decode(errors="replace")


def _rest(connection: socket.socket, deadline: float) -> tuple[str, bool]:
    """What comes until the end of the connection, and whether that was reached."""
    said = bytearray()
    with contextlib.suppress(TimeoutError):
        while len(said) < _MAX_BYTES and (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not (data := connection.recv(2**16)):
                return said.decode(errors="replace"), True
            said += data
    return said.decode(errors="replace"), False


def _where(address: str | None) -> tuple[str, int]:
    if address:
        host, _, port = address.rpartition(":")
        if port.isdecimal() and 0 < int(port) < 2**16:
            return host.strip("[]") or "localhost", int(port)
    return "localhost", PORT
