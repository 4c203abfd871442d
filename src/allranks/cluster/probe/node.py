"""What the sources ask: files, tools and the kernel of this node, or of one that was recorded as a tree of files."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from allranks.parent import die_with_parent

_FILE_BYTES = 4 * 2**20
"""More than any file of /proc or /sys that is read here."""


_TOOL_BYTES = 16 * 2**20
"""More than nvidia-smi says of sixteen GPUs."""


class ToolMissing(Exception):
    """This node has no such tool."""


class ToolFailed(Exception):
    """How it ended, and what it said last. `output` is what it had said on its standard output until then."""

    def __init__(self, how: str, output: str) -> None:
        super().__init__(how)
        self.output = output


class Node:
    """This machine where `root` is "/", else a recorded one: its files lie below `root`, its tools in `root`/bin, and
    what only a kernel could answer stands in `root`/recorded.json.

    `doing` is called with what is about to be waited for, so that what never comes back has a name.
    """

    def __init__(self, root: str = "/", doing: Callable[[str], None] = lambda what: None) -> None:
        self.root = Path(root)
        self.is_live = self.root == Path("/")
        self.doing = doing
        self.recorded: dict[str, Any] = {} if self.is_live else json.loads(self.text("/recorded.json") or "{}")
        self.environment: Mapping[str, str] = os.environ if self.is_live else self.recorded.get("environment", {})

    def place(self, path: str) -> Path:
        """Where the file of this name lies on the machine that asks."""
        return Path(path) if self.is_live else self.root / path.lstrip("/")

    def bytes(self, path: str, most: int = _FILE_BYTES) -> bytes:
        """Raises OSError."""
        with self.place(path).open("rb") as file:
            return file.read(most)

    def text(self, path: str) -> str | None:
        """None where it cannot be read; some files of /sys refuse to be read while they have no value."""
        try:
            return self.bytes(path).decode(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        try:
            return int(self.text(path) or "", 0)
        except ValueError:
            return None

    def names(self, path: str) -> list[str]:
        """What is in a folder, numbers in their order."""
        try:
            return sorted(os.listdir(self.place(path)), key=lambda name: (len(name) if name.isdigit() else 0, name))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.place(path))

    def points_to(self, path: str) -> str | None:
        """The last part of what a symbolic link points to, as /sys names drivers."""
        try:
            return Path(os.readlink(self.place(path))).name
        except OSError:
            return None

    def run(self, *argv: str) -> str:
        """What a tool writes on its standard output. Raises ToolMissing and ToolFailed.

        It is not bounded here: the source that waits for it is ended from outside, with all that descends from it.
        """
        path = self.environment.get("PATH") or os.defpath
        # Drivers put their tools where a login shell looks, and ssh's need not.
        folders = (
            f"{path}:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin:/opt/rocm/bin:/usr/lib/wsl/lib"
            if self.is_live
            else str(self.place("bin"))
        )
        tool = next(
            (f"{folder}/{argv[0]}" for folder in folders.split(":") if os.access(f"{folder}/{argv[0]}", os.X_OK)), None
        )
        if tool is None:
            raise ToolMissing(argv[0])
        self.doing(" ".join(argv))
        tool_process = subprocess.Popen(
            [tool, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            preexec_fn=die_with_parent,
        )
        with tool_process:
            output, errors = _read_both(tool_process)
        code = tool_process.returncode
        if code != 0:
            said = (errors.strip() or output.strip()).splitlines()
            if len(output) > _TOOL_BYTES:
                raise ToolFailed(f"{argv[0]} wrote without an end", "")
            raise ToolFailed(f"{argv[0]} {_how(code)}{': ' + said[-1].strip()[:200] if said else ''}", output)
        return output

    def host(self) -> str:
        return socket.gethostname() if self.is_live else self.text("/proc/sys/kernel/hostname") or ""


def _read_both(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    """What a tool writes, up to a bound; whoever writes more is killed, and its exit code says so."""
    assert process.stdout is not None and process.stderr is not None
    texts = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for number in texts:
            selector.register(number, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 2**16)
                texts[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
                elif len(texts[key.fd]) > _TOOL_BYTES:
                    process.kill()
                    selector.unregister(key.fd)
    output, errors = (text.decode(errors="replace") for text in texts.values())
    return output, errors


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"ended with {signal.Signals(-code).name}"
    except ValueError:
        return f"ended with signal {-code}"
