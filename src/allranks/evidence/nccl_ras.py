"""Asks NCCL's RAS service, which every NCCL process of a node knows (2.24 and newer), how the job's ranks are.

The protocol is that of NCCL's own client (src/ras/client.cc of NCCL 2.30, `ncclras -v -f json`): lines, and a status
that ends with the connection. JSON is there since 2.28.7; older versions refuse it and answer with a text. Diagnostics
(`ncclras -D`) are there since 2.31: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting/ras.html
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

PORT = 28028
_PROTOCOL = 2
_MAX_BYTES = 4 * 2**20
_LINE_BYTES = 4096
_WITH_DIAGNOSTICS = (2, 31)
_VERSION = re.compile(r"NCCL version (\d+)\.(\d+)")
_DIAGNOSTIC = re.compile(r"NCCL DIAG \[(OK|INFO)\] +(.+)")
_MOST_LINES = 64


def nccl_status(address: str | None = None, *, seconds: float = 3.0) -> dict[str, Any]:
    """{"json": …} or {"text": …}; {"why": …} where no status is to be had. `address` is NCCL_RAS_ADDR: HOST:PORT."""
    return _answered(address, seconds, _status)


def nccl_diagnostics(status: Mapping[str, Any], address: str | None = None, *, seconds: float = 3.0) -> dict[str, Any]:
    """{"diagnostics": lines, "is_complete": …} of what NCCL finds in comparing GPUs, drivers and its own variables over
    all ranks; {"why": …} where it does not answer. {} where the NCCL that gave the `status` has no such thing.

    It reads counters and asks the other processes; nothing is sent over the ranks' connections.
    """
    return _answered(address, seconds, _diagnostics) if version(status) >= _WITH_DIAGNOSTICS else {}


def version(status: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the NCCL that gave the status; () where it does not say."""
    told = status.get("json")
    said = told.get("nccl_version") if isinstance(told, Mapping) else None
    match = _VERSION.match(f"NCCL version {said}") if said else _VERSION.search(str(status.get("text", "")))
    return (int(match[1]), int(match[2])) if match else ()


def _answered(
    address: str | None, seconds: float, ask: Callable[[socket.socket, float], dict[str, Any]]
) -> dict[str, Any]:
    host, port = _where(address)
    deadline = time.monotonic() + seconds
    try:
        with socket.create_connection((host, port), timeout=min(1.0, seconds)) as connection:
            if not _say(connection, f"CLIENT PROTOCOL {_PROTOCOL}", deadline).upper().startswith("SERVER PROTOCOL "):
                raise ValueError("what listens there is no RAS service")
            left = max(1, int(deadline - time.monotonic()))
            _say(connection, f"TIMEOUT {left}", deadline)
            return ask(connection, deadline)
    except (OSError, ValueError) as error:
        return {"why": f"NCCL's RAS service at {host}:{port}: {error}"}


def _diagnostics(connection: socket.socket, deadline: float) -> dict[str, Any]:
    connection.sendall(b"DIAGNOSTICS\n")
    text, is_whole = _rest(connection, deadline)
    if text.startswith("BUSY"):
        raise ValueError("its diagnostics are asked for by somebody else just now")
    found = [f"[{match[1]}] {match[2].strip()}" for match in _DIAGNOSTIC.finditer(text)]
    return {"diagnostics": found[:_MOST_LINES], "is_complete": is_whole and "diagnostics completed in" in text}


def _status(connection: socket.socket, deadline: float) -> dict[str, Any]:
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
