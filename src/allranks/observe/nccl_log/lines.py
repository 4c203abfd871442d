"""NCCL's messages out of a file: of one rank or of several whose lines broke into each other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# host:pid:tid [device] NCCL INFO …; a warning has file:line before NCCL, and from 2.30 on (function); both may have a
# time before the host, in any format (NCCL_DEBUG_TIMESTAMP_FORMAT). It is looked for backwards from the word NCCL: to
# try it at every character of what is no log takes for ever.
_LEVEL = re.compile(r"NCCL (INFO|WARN) ")
_HEAD = re.compile(
    r"(?P<host>[A-Za-z0-9][\w.-]{0,253}):(?P<pid>\d{1,10}):(?P<tid>\d{1,10}) \[(?P<device>-?\d{1,4})\] "
    r"(?:(?P<where>[^\s\[\]]{1,120}:\d{1,6}) (?:\([^()\n]{1,120}\) )?)?$"
)
_LONGEST_HEAD = 600
_LAUNCHER_WORDS = re.compile(r"(?:\[[^\[\]\n]{0,60}\][: ]*|\d{1,6}: )*$")
_BARE_VERSION = re.compile(r"(?<![\w ])NCCL version (\S+)|^NCCL version (\S+)")
_RARE = 4
_TIME = re.compile(r"\s*\[[\d][^\[\]\n]{0,60}\]\s*$")


@dataclass(frozen=True)
class Line:
    """One message of the process `pid` on `host`. `level` is INFO, WARN, or VERSION for the bare line of a start."""

    host: str
    pid: int
    tid: int
    level: str
    text: str
    where: str = ""
    """Source file and line, of a warning."""


@dataclass(frozen=True)
class _Head:
    host: str
    pid: str
    tid: str
    level: str
    where: str
    start: int
    host_end: int
    end: int
    is_first: bool
    """Whether nothing but a launcher's word stands before it on its line."""


def messages(text: str) -> Iterator[Line]:
    """NCCL's messages in `text`, in order. Where another process's message begins inside of one, that one ends there.

    What is not NCCL's is passed over, also before a message on its line, such as `[rank0]:` or Slurm's `0: `.
    """
    lines = [(line, list(_heads(line))) for line in text.replace("\0", "").splitlines() if "NCCL" in line]
    hosts = _hosts(head for _, heads in lines for head in heads)
    for line, heads in lines:
        if bare := _BARE_VERSION.search(line[: heads[0].start if heads else len(line)]):
            yield Line("", 0, 0, "VERSION", f"NCCL version {bare[1] or bare[2]}")
        for number, head in enumerate(heads):
            said = line[head.end :]
            if number + 1 < len(heads):
                said = _TIME.sub("", line[head.end : _begin(heads[number + 1], hosts)])
            yield Line(hosts[head.host, head.pid], int(head.pid), int(head.tid), head.level, said.strip(), head.where)


def _heads(line: str) -> Iterator[_Head]:
    before = 0
    for level in _LEVEL.finditer(line):
        first = max(before, level.start() - _LONGEST_HEAD)
        before = level.end()
        match = _HEAD.search(line[first : level.start()])
        if match is None:
            continue
        start = first + match.start()
        yield _Head(
            host=match["host"],
            pid=match["pid"],
            tid=match["tid"],
            level=level[1],
            where=match["where"] or "",
            start=start,
            host_end=first + match.end("host"),
            end=level.end(),
            is_first=start < _LONGEST_HEAD and _LAUNCHER_WORDS.match(line[:start]) is not None,
        )


def _begin(head: _Head, hosts: dict[tuple[str, str], str]) -> int:
    """Where `head` begins: what its name has before the host's is the end of the message before."""
    host = hosts[head.host, head.pid]
    return head.host_end - (len(host) if head.host.endswith(host) else len(head.host))


def _hosts(heads: Iterable[_Head]) -> dict[tuple[str, str], str]:
    """(name, pid) as they stand in a log -> the host: a torn line has lost some of its name, or grown by another's end
    (`1[1node0` is node0), which shows by how rare that is beside the same process's own name."""
    heads = list(heads)
    times = Counter((head.host, head.pid) for head in heads)
    begins = {head.host for head in heads if head.is_first}
    most: dict[str, tuple[str, str]] = {}
    for (name, pid), number in times.items():
        if pid not in most or number > times[most[pid]]:
            most[pid] = (name, pid)
    found = {}
    for (name, pid), number in times.items():
        usual = most[pid]
        if number * _RARE <= times[usual]:
            found[name, pid] = usual[0]
        elif name in begins:
            found[name, pid] = name
        else:
            found[name, pid] = max((host for host in begins if name.endswith(host)), key=len, default=name)
    return found
