"""What the kernel's log says of the GPUs since this machine was booted."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node

# NVIDIA's driver numbers its faults; AMD's says what it had to do.
_ABOUT_GPUS = re.compile(r"NVRM: Xid|amdgpu.*(?:GPU reset|ring \S+ timeout|uncorrectable|\bfatal\b)|\bkfd\b.*error")
_LINES = 50  # the last ones: a GPU that has fallen off the bus repeats itself
_RECORD_BYTES = 8192  # a record of /dev/kmsg is never longer


def look_at_kernel_log(node: Node, reporter: Reporter) -> Iterator[Found]:
    try:
        records = list(_records(node))
    except OSError as error:
        who = "a container does not see" if isinstance(error, FileNotFoundError) else "root alone reads"
        reporter.withheld("gpu_system.xids", f"{who} the kernel's log, where drivers report faults of GPUs")
        return
    found = [f"{_time(node, microseconds)} {text}" for microseconds, text in records if _ABOUT_GPUS.search(text)]
    yield {"gpu_system": {"xids": found[-_LINES:]}}


def kernel_records(node: Node, since_boot_seconds: float = 0.0) -> Iterator[str]:
    """The lines of the kernel's log from then on, with their times. Raises OSError where it may not be read."""
    for microseconds, text in _records(node):
        if microseconds >= since_boot_seconds * 1e6:
            yield f"{_time(node, microseconds)} {text}"


def _records(node: Node) -> Iterator[tuple[int, str]]:
    """Microseconds since the boot, and text (Documentation/ABI/testing/dev-kmsg). Raises OSError."""
    if not node.is_live:
        for line in node.bytes("/dev/kmsg").decode().splitlines():
            yield _record(line)
        return
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                yield _record(os.read(log, _RECORD_BYTES).decode(errors="replace"))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EPIPE:  # this record was overwritten while it was read
                    raise
    finally:
        os.close(log)


def _record(text: str) -> tuple[int, str]:
    head, _, message = text.partition(";")
    fields = head.split(",")
    return int(fields[2]) if len(fields) > 2 and fields[2].isdigit() else 0, message.splitlines()[0] if message else ""


def _time(node: Node, microseconds: int) -> str:
    """As a date: the reader asks whether it was before or during a run."""
    boot = re.search(r"^btime (\d+)$", node.text("/proc/stat") or "", re.MULTILINE)
    if boot is None:
        return f"[{microseconds / 1e6:.0f} s after boot]"
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(int(boot[1]) + microseconds / 1e6))
