"""Bandwidth between two InfiniBand or RoCE adapters, by `ib_write_bw` of the package perftest, where it is installed.

Its options and output are those of perftest 4.4 to 26.04 (README, src/perftest_parameters.c and .h at
https://github.com/linux-rdma/perftest). Not run on hardware: tests have a stand-in that prints the same table.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from allranks.cluster.measure.tcp import Measured
from allranks.listing import printable
from allranks.parent import die_with_parent

PROGRAM, PACKAGE = "ib_write_bw", "perftest"
RAIL_SECONDS = 12.0
"""At most for one measurement: the tool itself sleeps for 1 s and sends for 1 s, and opening an adapter takes some."""
_SERVER_SECONDS = 6.0
"""How long a client tries again while nobody listens: the other end starts at the same time."""
_AGAIN_SECONDS = 0.2
_HELP_SECONDS = 5.0
_SECONDS, _MESSAGE_BYTES = 1, 2**20
"""What Azure's node health checks take for adapters of 100 to 400 Gbit/s, but for 10 s; it pins 2 MiB, which fits the
usual 8 MiB of memory that may be locked."""
_MOST_OUTPUT = 2**16
_BYTES_OF = {"Gb/sec": 1e9 / 8, "MB/sec": 2**20, "MiB/sec": 2**20}
"""By the table's heading; up to 4.5 it says MB/sec and means MiB/sec, as its divisor in print_report_bw shows."""
_HEADING = re.compile(r"BW peak\[[\w/]+\]\s+BW average\[([\w/]+)\]")
_ROW = re.compile(r"^\s*\d+\s+\d+\s+\d+\.\d+\s+(\d+\.\d+)\s")
"""#bytes, #iterations, BW peak (0.00 where the test is one of seconds), BW average, MsgRate."""


@dataclass(frozen=True)
class Tool:
    """The program, and which of the options that not every version has it knows."""

    path: str
    binds: bool = False
    """`--bind_source_ip`: from 23.07 on."""
    speaks_ipv6: bool = False
    """`--ipv6-addr`: from 23.07 on."""


@dataclass(frozen=True)
class Adapter:
    """One port of an adapter of this node. `gid_index`: its RoCE address, None on InfiniBand."""

    device: str
    port: int
    gid_index: int | None = None


def find_tool() -> Tool | str:
    """The program on this node, or why it cannot be used."""
    path = shutil.which(PROGRAM)
    if path is None:
        return f"{PROGRAM} is not installed (package {PACKAGE})"
    try:
        done = _Running([path, "--help"]).finish(_HELP_SECONDS)
    except (OSError, TimeoutError) as error:
        return f"{PROGRAM} --help: {getattr(error, 'strerror', None) or error}"
    said = done.output + done.errors
    if "--report_gbits" not in said:
        return f"{PROGRAM} is older than perftest 4.1, or another program: it has no --report_gbits"
    return Tool(path, "--bind_source_ip" in said, "--ipv6-addr" in said)


def why_not_at(tool: Tool, address: str) -> str:
    """Why the two ends cannot agree at `address`; "" where they can."""
    if "%" in address:
        return f"{PROGRAM} cannot meet at the link-local address {address}"
    is_old = ipaddress.ip_address(address).version == 6 and not tool.speaks_ipv6
    return f"{PROGRAM} of this version cannot meet at an IPv6 address ({address})" if is_old else ""


@contextlib.contextmanager
def answering(
    tool: Tool, at: Sequence[tuple[Adapter, int]], address: str, failed: Callable[[str], None] = lambda words: None
) -> Iterator[None]:
    """Within, other nodes may measure to each of these adapters of this node, and meet it at its port of `address`.

    None is left behind. `failed` is told, afterwards, what those said that ended by themselves and not well: the other
    end hears no more than that nobody is there.
    """
    with contextlib.ExitStack() as files:
        running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        try:
            for adapter, port in at:
                errors: IO[bytes] = files.enter_context(tempfile.TemporaryFile())
                try:
                    started = _start(_command(tool, adapter, address, port), subprocess.DEVNULL, errors.fileno())
                    running.append((started, errors))
                except OSError as error:
                    failed(f"{PROGRAM}: {error.strerror}")
            yield
        finally:
            for one, written in running:
                code = one.poll()
                _end(one)
                if code:
                    written.seek(0)
                    said = written.read(_MOST_OUTPUT).decode("utf-8", "replace")
                    failed(f"{PROGRAM}: {_Done('', said, code).last_words}")


def measure_adapter(tool: Tool, adapter: Adapter, source: str, target: str, port: int) -> Measured:
    """What this node's adapter writes into the memory behind the one that waits at `target`. Raises nothing."""
    deadline = time.monotonic() + RAIL_SECONDS
    until = time.monotonic() + _SERVER_SECONDS
    command = [*_command(tool, adapter, source, port), target]
    while True:
        try:
            done = _Running(command).finish(deadline - time.monotonic())
        except (OSError, TimeoutError) as error:
            return Measured(failed=f"{PROGRAM}: {getattr(error, 'strerror', None) or error}")
        if (rate := bytes_per_second(done.output)) is not None:
            return Measured(bytes_per_second=rate)
        if "connect to" not in done.errors or time.monotonic() > until:
            return Measured(failed=f"{PROGRAM}: {done.last_words}")
        time.sleep(_AGAIN_SECONDS)


def bytes_per_second(output: str) -> float | None:
    """The average of the first row of its table, whichever unit the heading has; None where there is none."""
    lines = iter(output.splitlines())
    unit = next((_BYTES_OF.get(found[1]) for line in lines if (found := _HEADING.search(line))), None)
    rate = next((float(found[1]) for line in lines if (found := _ROW.match(f"{line} "))), None)
    return unit * rate if unit is not None and rate is not None and 0 < rate < math.inf else None


def _command(tool: Tool, adapter: Adapter, address: str, port: int) -> list[str]:
    # -F: frequencies of cores that differ, as they do on every idle machine, are no reason for no result.
    command = [tool.path, "-d", adapter.device, "-i", str(adapter.port), "-p", str(port), "-F", "--report_gbits"]
    command += ["-D", str(_SECONDS), "-s", str(_MESSAGE_BYTES)]
    if adapter.gid_index is not None:
        command += ["-x", str(adapter.gid_index)]
    if tool.binds:
        command += ["--bind_source_ip", address]
    if tool.speaks_ipv6 and ":" in address:
        command += ["--ipv6-addr"]
    return command


def _start(command: Sequence[str], output: int, errors: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class _Done:
    output: str
    errors: str
    code: int

    @property
    def last_words(self) -> str:
        """Why it failed: what it wrote as errors, else how it ended."""
        words = "; ".join(line.strip() for line in self.errors.splitlines() if line.strip())
        return printable(words, 200) if words else f"it printed no bandwidth, and ended with exit code {self.code}"


class _Running:
    """The program, until it has ended or its time is up: it may hang in its driver. Raises OSError where it cannot."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = _start(command, subprocess.PIPE, subprocess.PIPE)

    def finish(self, seconds: float) -> _Done:
        """Its output, of which no more is kept than is expected. Raises TimeoutError."""
        until = time.monotonic() + seconds
        said = {"output": b"", "errors": b""}
        try:
            with selectors.DefaultSelector() as selector:
                for stream, name in ((self._process.stdout, "output"), (self._process.stderr, "errors")):
                    assert stream is not None
                    selector.register(stream, selectors.EVENT_READ, name)
                while selector.get_map():
                    if (left := until - time.monotonic()) <= 0:
                        raise TimeoutError(f"it had not ended after {seconds:.0f} s")
                    for key, _ in selector.select(left):
                        if got := os.read(key.fd, _MOST_OUTPUT):
                            said[key.data] = (said[key.data] + got)[:_MOST_OUTPUT]
                        else:
                            selector.unregister(key.fileobj)
            code = self._process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it had not ended after {seconds:.0f} s") from None
        finally:
            _end(self._process)
            for stream in (self._process.stdout, self._process.stderr):
                if stream is not None:
                    stream.close()
        return _Done(said["output"].decode("utf-8", "replace"), said["errors"].decode("utf-8", "replace"), code)
