"""Start the programs that measure this node's devices, read what they say until a deadline, and end them."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from allranks.cluster.measure import child as child_program
from allranks.cluster.measure.child import Request
from allranks.listing import printable
from allranks.parent import die_with_parent

_LONGEST_WORD = 300
_MOST_BYTES = 2**18
_LARGEST = 1e30
_MOST_DIAGNOSTICS = 64
_RATES = (
    "products",
    "thin",
    "kernel_seconds",
    "small",
    "cold",
    "fresh_seconds",
    "attention",
    "wide_attention",
    "call_seconds",
    "logits",
    "optimizer",
    "spread",
)
_DIAGNOSTICS = {"NCCL_RUN_DIAGNOSTICS": "1"}
"""NCCL 2.31 and newer then looks at itself when ranks meet (its user guide, troubleshooting); older ones ignore it."""


@dataclass(frozen=True)
class AllReduce:
    """An all-reduce of `num_bytes` on every rank."""

    num_bytes: int
    seconds: float
    right: bool

    def bus_bytes_per_second(self, world_size: int) -> float:
        """What each link of a ring carries (nccl-tests, doc/PERFORMANCE.md)."""
        return 2 * (world_size - 1) / world_size * self.num_bytes / max(self.seconds, 1e-9)


@dataclass
class DeviceMeasured:
    """What one child has said. `failed`: why it did not come to its end."""

    rank: int
    device: str
    matmul_flops: float | None = None
    copy_bytes_per_second: float | None = None
    joined: bool = False
    all_reduces: list[AllReduce] = field(default_factory=list)
    done: bool = False
    failed: str = ""
    rates: dict[str, Any] = field(default_factory=dict)
    """By name, as `measure_rates` tells them: a number, or pairs of a size and a number."""
    diagnostics: list[str] = field(default_factory=list)
    """What NCCL's own diagnostics printed, without what is before their state: `[OK] GPU …`."""

    def take_line(self, line: str) -> None:
        """One line of the child's output that is no JSON."""
        _, found, said = line.partition("NCCL DIAG ")
        if found and len(self.diagnostics) < _MOST_DIAGNOSTICS:
            self.diagnostics.append(printable(said.strip(), _LONGEST_WORD))

    def take(self, said: Mapping[str, Any]) -> None:
        """One line of the child's."""
        self.matmul_flops = _or(said.get("matmul_flops"), self.matmul_flops)
        self.copy_bytes_per_second = _or(said.get("copy_bytes_per_second"), self.copy_bytes_per_second)
        self.rates |= {name: said[name] for name in _RATES if name in said}
        self.joined = self.joined or said.get("joined") is True
        self.done = self.done or said.get("done") is True
        num_bytes, seconds = number(said.get("num_bytes")), number(said.get("seconds"))
        if num_bytes is not None and seconds is not None and len(self.all_reduces) < 64:
            self.all_reduces.append(AllReduce(int(num_bytes), seconds, said.get("right") is True))

    def to_message(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "device": self.device,
            "matmul_flops": self.matmul_flops,
            "copy_bytes_per_second": self.copy_bytes_per_second,
            "joined": self.joined,
            "all_reduces": [[one.num_bytes, one.seconds, one.right] for one in self.all_reduces],
            "done": self.done,
            "failed": self.failed,
            "diagnostics": self.diagnostics,
        }

    @classmethod
    def from_message(cls, said: object) -> DeviceMeasured | None:
        """None for what is none: it comes from the wire."""
        if not isinstance(said, Mapping) or not isinstance(rank := said.get("rank"), int):
            return None
        read = cls(rank, printable(said.get("device"), 64), failed=printable(said.get("failed") or "", _LONGEST_WORD))
        read.take({key: said.get(key) for key in ("matmul_flops", "copy_bytes_per_second", "joined", "done")})
        for one in said.get("all_reduces") or () if isinstance(said.get("all_reduces"), list) else ():
            if isinstance(one, list) and len(one) == 3:
                read.take({"num_bytes": one[0], "seconds": one[1], "right": one[2]})
        for line in said.get("diagnostics") or () if isinstance(said.get("diagnostics"), list) else ():
            read.take_line(f"NCCL DIAG {line}")
        return read


def measure_devices(
    requests: Sequence[Request], environment: Mapping[str, str], deadline_seconds: float
) -> list[DeviceMeasured]:
    """A child for each request, all at once; returns after `deadline_seconds` at the latest, with none left behind."""
    deadline = time.monotonic() + deadline_seconds
    results = [DeviceMeasured(request.rank, _device(request)) for request in requests]
    children: list[subprocess.Popen[bytes]] = []
    try:
        with selectors.DefaultSelector() as selector:
            for request, result in zip(requests, results, strict=True):
                child = subprocess.Popen(
                    [sys.executable, "-P", child_program.__file__],
                    env={**os.environ, "OMP_NUM_THREADS": "1", **_DIAGNOSTICS, **environment},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # by then nobody is left who would end it
                )
                children.append(child)
                assert child.stdin is not None and child.stdout is not None and child.stderr is not None
                with contextlib.suppress(OSError):  # it has died: its output says so
                    child.stdin.write(request.to_line().encode())
                    child.stdin.close()
                for stream in (child.stdout, child.stderr):
                    os.set_blocking(stream.fileno(), False)
                selector.register(child.stdout, selectors.EVENT_READ, _Reader(result))
                selector.register(child.stderr, selectors.EVENT_READ, _LastWords(result))
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if not key.data.read(key.fileobj):
                        selector.unregister(key.fileobj)
        for child, result in zip(children, results, strict=True):
            _conclude(child, result, deadline_seconds)
        return results
    finally:
        for child in children:
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for opened in (child.stdout, child.stderr):
                if opened is not None:
                    opened.close()


def _conclude(child: subprocess.Popen[bytes], result: DeviceMeasured, seconds: float) -> None:
    """Why it did not come to its end, if it did not."""
    if result.done:
        result.failed = ""
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(0.5)
    if child.returncode is None:
        doing = "the all-reduce" if result.joined else "joining the others" if result.matmul_flops else "its device"
        result.failed = f"it was still at {doing} after {seconds:.0f} s"
    elif child.returncode < 0:
        result.failed = f"it was killed by signal {-child.returncode}"
    else:
        result.failed = result.failed or f"it ended with exit code {child.returncode}"


class _Reader:
    """Takes the lines of a child's standard output."""

    def __init__(self, result: DeviceMeasured) -> None:
        self._result, self._rest = result, b""

    def read(self, stream: Any) -> bool:
        """Whether there may come more."""
        got = stream.read()
        if got is None:
            return True
        *lines, self._rest = (self._rest + got)[-_MOST_BYTES:].split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
            except (ValueError, RecursionError):
                self._result.take_line(line.decode("utf-8", "replace"))
                continue
            if isinstance(said, dict):
                self._result.take(said)
        return bool(got)


class _LastWords:
    """Keeps the last line of what a child writes to standard error: Python's name of the error."""

    def __init__(self, result: DeviceMeasured) -> None:
        self._result, self._text = result, b""

    def read(self, stream: Any) -> bool:
        got = stream.read()
        if got is None:
            return True
        self._text = (self._text + got)[-4096:]
        if lines := self._text.decode("utf-8", "replace").strip().splitlines():
            self._result.failed = printable(lines[-1], _LONGEST_WORD)
        return bool(got)


def _device(request: Request) -> str:
    return f"cuda:{request.local_rank}" if request.device == "cuda" else request.device


def number(value: object) -> float | None:
    """What a child or a node says, if it can be a measured number: finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < _LARGEST else None


def _or(value: object, otherwise: float | None) -> float | None:
    known = number(value)
    return otherwise if known is None else known
