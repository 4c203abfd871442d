"""What the stand-in's programs say to each other: one JSON object a line, over TCP."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any, NoReturn

SERVER_PORT = 15001
MOM_PORT = 15002
SERVER_NAME_FILE = "/etc/pbs_stand_in_server"
VERSION = "pbs_version = stand-in (the allranks test lab's imitation of OpenPBS, not PBS itself)"


def server_name() -> str:
    with open(SERVER_NAME_FILE) as file:  # noqa: PTH123
        return file.read().strip()


def connect(host: str, port: int) -> socket.socket:
    """Connect; a peer that lost its power is noticed after ten seconds."""
    connection = socket.create_connection((host, port), timeout=10)
    connection.settimeout(None)
    keep_alive(connection)
    return connection


def keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def ask_server(message: dict[str, Any]) -> dict[str, Any]:
    """Send one request to the server, and wait for its one answer."""
    try:
        with connect(server_name(), SERVER_PORT) as connection, connection.makefile("rwb") as stream:
            stream.write(encode(message))
            stream.flush()
            line = stream.readline()
    except OSError as error:
        fail(f"cannot connect to server {server_name()}: {error.strerror}", 1)
    if not line:
        fail(f"server {server_name()} went away", 1)
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        fail(reply["error"], reply.get("code", 1))
    return reply


def fail(message: str, code: int = 2) -> NoReturn:
    program = sys.argv[0].rsplit("/", 1)[-1]
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(code)


def answer_version() -> None:
    """`--version` and `--help` say what this is."""
    if sys.argv[1:2] == ["--version"]:
        print(VERSION)
        sys.exit(0)
    if sys.argv[1:2] == ["--help"]:
        print(
            f"{VERSION}\nIt does what qsub(1B), qstat(1B), qdel(1B) and pbsdsh(1B) say, with a part of their options."
        )
        sys.exit(0)
