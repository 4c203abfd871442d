"""Processes that hold this node: ranks of an earlier run, and whoever uses a GPU."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node

_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
# Launchers of ranks and allranks' own ranks, where the environment is another user's and cannot be read.
_PROGRAMS = ("torchrun", "deepspeed", "accelerate", "allranks")
_INITS = ("systemd", "init", "tini", "dumb-init", "docker-init", "catatonit", "podman-init", "s6-svscan", "runit")
_MODULES = ("torch.distributed.run", "torch.distributed.launch", "deepspeed.launcher.launch", "allranks.train")


def look_for_leftovers(node: Node, reporter: Reporter) -> Iterator[Found]:
    """Ranks, and launchers of ranks, that have nothing to do with who asks. Whether they were left over or are
    somebody's run is for the reader to judge: by how old they are, and by `orphan`, whether their parent has gone."""
    parents = {pid: parent for pid in _pids(node) if (parent := _stat(node, pid).get("parent")) is not None}
    ours = _ours(node, parents)
    found: list[dict[str, Any]] = []
    is_withheld = False
    yield {"leftovers": found}
    for pid in parents:
        if pid in ours:
            continue
        reporter.doing(f"process {pid}")
        words = command_words(node, pid)
        if not is_withheld and words and not _may_look(node, pid):
            is_withheld = True
            reporter.withheld(
                "leftovers", "root alone sees by their environment which of other users' processes are ranks"
            )
        if words and (_is_rank(node, pid) or _is_named(words)):
            found.append({**describe(node, pid), "orphan": _is_orphan(node, pid, parents), "seconds": _age(node, pid)})
            yield {"leftovers": found}


def describe(node: Node, pid: int) -> dict[str, Any]:
    """Of the command only the program and its script or module: arguments may be secret."""
    words = command_words(node, pid)
    return {"pid": pid, "user": _user(node, pid), "command": _short(words) if words else None}


def command_words(node: Node, pid: int) -> list[str]:
    """Empty for a thread of the kernel, and for a process that has ended."""
    text = (node.text(f"/proc/{pid}/cmdline") or "").rstrip("\0")
    return text.split("\0") if text else []


def _short(words: Sequence[str]) -> str:
    program = PurePath(words[0]).name
    if not program.startswith("python"):
        return program
    for index, word in enumerate(words[1:], 1):
        if word == "-m" and index + 1 < len(words):
            return f"{program} -m {words[index + 1]}"
        if not word.startswith("-"):
            return f"{program} {PurePath(word).name}"
    return program


def _is_named(words: Sequence[str]) -> bool:
    if not words:
        return False
    script = next((PurePath(word).name for word in words[1:2] if not word.startswith("-")), "")
    program = PurePath(words[0]).name
    if "allranks" in (program, script):
        return False  # the command line: of its own ranks each is found by itself
    if program in _PROGRAMS or (program.startswith("python") and script in _PROGRAMS):
        return True
    return any(words[index] == "-m" and words[index + 1] in _MODULES for index in range(len(words) - 1))


def _is_orphan(node: Node, pid: int, parents: dict[int, int]) -> bool:
    """Whether what started it is gone, so that an init has it now. In a container process 1 may be a launcher or a
    shell; of its children those are orphans whose session has lost its leader."""
    parent = parents[pid]
    if (node.text(f"/proc/{parent}/comm") or "") in _INITS:
        return True
    session = _stat(node, pid).get("session")
    return parent == 1 and bool(session) and session != pid and session not in parents


def _may_look(node: Node, pid: int) -> bool:
    try:
        node.bytes(f"/proc/{pid}/environ")
    except PermissionError:
        return False
    except OSError:  # ended meanwhile
        pass
    return True


def _has_to_do_with_ranks(node: Node, pid: int) -> bool:
    words = command_words(node, pid)
    return any("allranks" in word for word in words[:3]) or _is_named(words) or _is_rank(node, pid)


def _is_rank(node: Node, pid: int) -> bool:
    names = {entry.partition("=")[0] for entry in (node.text(f"/proc/{pid}/environ") or "").split("\0")}
    return names.issuperset(_RANK)


def _ours(node: Node, parents: dict[int, int]) -> set[int]:
    """Who asks: all above this process, and all below the topmost of them that is allranks' or starts ranks."""
    if not node.is_live:
        return set()
    above = [os.getpid()]
    while above[-1] in parents:
        above.append(parents[above[-1]])
    asking = [pid for pid in above if _has_to_do_with_ranks(node, pid)]
    top = asking[-1] if asking else above[0]
    ours = set(above) | {top}
    for pid in parents:
        line = [pid]
        while line[-1] in parents and line[-1] != top:
            line.append(parents[line[-1]])
        if line[-1] == top:
            ours.update(line)
    return ours


def _pids(node: Node) -> list[int]:
    return [int(name) for name in node.names("/proc") if name.isdigit()]


def _stat(node: Node, pid: int) -> dict[str, int]:
    """proc(5): parent, session and, in ticks since the boot, its start; nothing for one that is dead."""
    words = (node.text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    if len(words) < 20 or words[0] in "ZX" or not (words[1].isdigit() and words[19].isdigit()):
        return {}
    session = int(words[3]) if words[3].isdigit() else 0
    return {"parent": int(words[1]), "session": session, "start": int(words[19])}


def _age(node: Node, pid: int) -> float | None:
    boot = re.search(r"^btime (\d+)$", node.text("/proc/stat") or "", re.MULTILINE)
    start = _stat(node, pid).get("start")
    now = time.time() if node.is_live else node.recorded.get("time")
    if boot is None or start is None or now is None:
        return None
    return max(0.0, round(now - int(boot[1]) - start / os.sysconf("SC_CLK_TCK"), 1))


def _user(node: Node, pid: int) -> str | None:
    """By this node's own file: a directory service may not answer."""
    uid = re.search(r"^Uid:\s+(\d+)", node.text(f"/proc/{pid}/status") or "", re.MULTILINE)
    if uid is None:
        return None
    for line in (node.text("/etc/passwd") or "").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == uid[1]:
            return fields[0]
    return f"uid {uid[1]}"
