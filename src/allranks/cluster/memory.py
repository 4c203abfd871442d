"""The memory of this host: who bounds it, and whether the kernel has killed for want of it."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60  # cgroup v1 says "none" by a number near 2**63


@dataclass(frozen=True)
class Limit:
    """Bytes that this process may hold, and who says so."""

    num_bytes: int
    source: str


@dataclass(frozen=True)
class Kills:
    """How often the kernel has killed for want of memory: in this process's cgroup, and on the whole machine.

    None where the kernel does not tell.
    """

    cgroup: int | None
    machine: int | None


def memory_limit(root: Path = Path("/")) -> Limit | None:
    """The smallest limit that holds for this process."""
    found = [Limit(size, source) for size, source in _limits(root) if size < _UNLIMITED]
    return min(found, key=lambda limit: limit.num_bytes, default=None)


def memory_kills(root: Path = Path("/")) -> Kills:
    """The counts as they are now; see proc(5) for oom_kill of /proc/vmstat, cgroups(7) for memory.events."""
    cgroup = None
    for folder in _folders(root):
        cgroup = _count(folder / "memory.events", folder / "memory.oom_control")
        if cgroup is not None:
            break
    return Kills(cgroup, _count(root / "proc/vmstat"))


def killed_since(before: Kills, root: Path = Path("/")) -> str | None:
    """What the kernel has killed for want of memory since then, in words: "" for nothing, None for not known."""
    now = memory_kills(root)
    if before.cgroup is not None and now.cgroup is not None and now.cgroup > before.cgroup:
        limit = memory_limit(root)
        of = f" ({limit.source}: {limit.num_bytes / 2**30:.1f} GiB)" if limit else ""
        return f"its cgroup ran out of memory{of}"
    if before.machine is not None and now.machine is not None:
        return "this machine ran out of memory" if now.machine > before.machine else ""
    return None


def _limits(root: Path) -> Iterator[tuple[int, str]]:
    for name, kind in (("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            yield soft, kind
    for folder in _folders(root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                yield int((folder / name).read_text()), "the cgroup's limit"
    with contextlib.suppress(OSError, ValueError, IndexError):
        total = next(line for line in (root / "proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        yield int(total.split()[1]) * 1024, "the machine's memory"


def _folders(root: Path) -> Iterator[Path]:
    """This process's cgroups that count memory, each before those above it; some need not be there."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, colon, name = rest.partition(":")
        if not colon:  # a container's own idea of this file
            continue
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        place = top / name.strip("/")
        yield from (folder for folder in (place, *place.parents) if folder.is_relative_to(top))


def _count(*files: Path) -> int | None:
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None
