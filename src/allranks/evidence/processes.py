"""What the kernel says of a process and its connections: proc(5), read for one process within a child that may hang."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_MAX_SOCKETS = 48
_MAX_TEXT = 4096
_TCP_STATES = {
    1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE",
    8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING",
}  # fmt: skip
"""include/net/tcp_states.h"""


def process_state(pid: int, thread: int | None = None) -> dict[str, Any]:
    """State, wait channel, system call and kernel stack of a process's `thread` (the first one by default).

    What may not be read is left out. Nothing here reads the process's own memory, which may be on a dead disk.
    """
    folder = Path(f"/proc/{pid}/task/{thread or pid}")
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, IndexError):
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        found["state"] = fields[0]
        ticks = os.sysconf("SC_CLK_TCK")
        found["cpu_seconds"] = (int(fields[11]) + int(fields[12])) / ticks
    for name in ("wchan", "syscall", "stack"):
        with contextlib.suppress(OSError):
            text = (folder / name).read_text(errors="replace").strip()[:_MAX_TEXT]
            if text and text != "0":
                found[name] = text
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith(("VmRSS:", "Threads:")):
                name, value = line.split(":")
                found["memory_bytes" if name == "VmRSS" else "num_threads"] = _number(value)
    return found


def held_threads(pid: int, seconds: float = 0.5) -> list[dict[str, Any]]:
    """The threads of a process that wait in the kernel (state D), for storage or a device, and for `seconds` have come
    no further: name and wait channel. A busy disk lets each of them go on now and then."""
    before = _in_kernel(pid)
    if not before:
        return []
    time.sleep(seconds)
    after = _in_kernel(pid)
    found = []
    for thread in [thread for thread, switches in before.items() if after.get(thread) == switches][:_MAX_SOCKETS]:
        folder = Path(f"/proc/{pid}/task/{thread}")
        about: dict[str, Any] = {"thread": thread}
        for name in ("comm", "wchan"):
            with contextlib.suppress(OSError):
                about[name] = (folder / name).read_text(errors="replace").strip()[:200]
        found.append(about)
    return found


def _in_kernel(pid: int) -> dict[int, str]:
    """Threads in state D, each with how often it has let go of its CPU."""
    found = {}
    for folder in Path(f"/proc/{pid}/task").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "D":
                lines = (folder / "status").read_text(errors="replace").splitlines()
                found[int(folder.name)] = " ".join(line for line in lines if "ctxt_switches" in line)
    return found


def children(pid: int) -> list[dict[str, Any]]:
    """The processes that a process has started, such as workers that load data: pid, name and state."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            head, _, tail = (folder / "stat").read_text(errors="replace").rpartition(")")
            state, parent = tail.split()[:2]
            if int(parent) == pid:
                found.append({"pid": int(folder.name), "name": head.partition("(")[2], "state": state})
    return found[:_MAX_SOCKETS]


def sockets(pid: int, root: Path = Path("/proc")) -> list[dict[str, Any]]:
    """The TCP connections of a process, those with bytes in a queue first: what it sent and nobody took, or what came
    and it has not read. Listening ones are left out."""
    inodes = set()
    with contextlib.suppress(OSError):
        for fd in (root / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if found := re.fullmatch(r"socket:\[(\d+)\]", str(fd.readlink())):
                    inodes.add(found[1])
    connections: list[dict[str, Any]] = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), (root / str(pid) / "net" / name).open(errors="replace") as file:
            next(file, None)
            connections += [one for line in file if (one := _connection(line, inodes)) is not None]
    connections.sort(key=lambda one: (-(one["send_queue_bytes"] + one["receive_queue_bytes"]), one["peer"]))
    return connections[:_MAX_SOCKETS]


def _connection(line: str, inodes: set[str]) -> dict[str, Any] | None:
    fields = line.split()
    if len(fields) < 10 or fields[9] not in inodes:
        return None
    state = _TCP_STATES.get(int(fields[3], 16), fields[3])
    if state == "LISTEN":
        return None
    send, receive = fields[4].split(":")
    return {
        "state": state,
        "local": _address(fields[1]),
        "peer": _address(fields[2]),
        "send_queue_bytes": int(send, 16),
        "receive_queue_bytes": int(receive, 16),
        "retransmits": int(fields[6], 16),
    }


def _address(text: str) -> str:
    """As the kernel writes it: words of 32 bits in the machine's order, then the port."""
    packed, port = text.split(":")
    words = b"".join(bytes.fromhex(packed[at : at + 8])[::-1] for at in range(0, len(packed), 8))
    address = ipaddress.ip_address(words)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return f"[{address}]:{int(port, 16)}" if address.version == 6 else f"{address}:{int(port, 16)}"


def memory_events(pid: int, root: Path = Path("/")) -> Mapping[str, int]:
    """How often the process's cgroup ran into its limit or was killed in, and what it holds; empty if not told."""
    found: dict[str, int] = {}
    for folder in _memory_folders(pid, root):
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                for line in (folder / name).read_text().splitlines():
                    word, value = line.split()
                    found.setdefault(word, int(value))
        for word, names in _SIZES.items():
            for name in names:
                with contextlib.suppress(OSError, ValueError):
                    found.setdefault(word, int((folder / name).read_text()))
        if found:
            break
    return found


_SIZES = {
    "current_bytes": ("memory.current", "memory.usage_in_bytes"),
    "limit_bytes": ("memory.max", "memory.limit_in_bytes"),
}


def _memory_folders(pid: int, root: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError, ValueError):
        for line in (root / f"proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                yield root / "sys/fs/cgroup" / ("memory" if controllers else "") / name.strip("/")


def _number(text: str) -> int:
    """`  1234 kB` in bytes; `12` as it is."""
    number = int(text.split()[0])
    return number * 1024 if text.rstrip().endswith("kB") else number
