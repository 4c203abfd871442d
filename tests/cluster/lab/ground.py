"""What a lab stands on: whether this machine can carry one, where labs keep their files, and which are left behind.

Every process of a lab is in a cgroup of the lab's, and every mount and interface lives in a namespace of one of these
processes: killing the cgroup removes all of it but two folders. Both are named after the owner, so that a lab whose
owner is gone is known from the folder's name alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

FILES = Path("/var/lib/allranks-lab")
CGROUPS_NAME = "allranks-lab"
PROGRAMS = (
    "sshd ssh ssh-keygen munged slurmctld slurmd sbatch ip tc iptables mpirun ping tini unshare nsenter shellcheck"
)
_PERIOD_MICROSECONDS = 20_000
"""Of CPU limits, short beside a step of training: a node that has used its time up waits for the next period."""
# Debian's users have no sbin in PATH, where most of these live.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str | None:
    """Why this machine can carry no lab, with the remedy; None when it can."""
    if not sys.platform.startswith("linux"):
        return "the lab is made of Linux namespaces: run it in a Linux virtual machine"
    if os.geteuid() != 0:
        return "the lab needs root: sudo .venv/bin/python -m pytest tests/cluster"
    absent = [program for program in PROGRAMS.split() if shutil.which(program, path=PATH) is None]
    if absent:
        remedy = "on Debian, sudo tests/cluster/lab/install.sh (apt-get, with the packages' daemons kept off)"
        return f"the lab needs programs that are not here ({', '.join(absent)}): {remedy}"
    if not os.access(cgroup2(), os.W_OK):
        return f"the lab needs a writable cgroup v2 at {cgroup2()}: use the machine itself, or a privileged container"
    return None


def cgroup2() -> Path:
    """Where the cgroup v2 hierarchy is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(mount_point)
    return Path("/sys/fs/cgroup")


def cgroups() -> Path:
    """The parent of all labs' cgroups."""
    return cgroup2() / CGROUPS_NAME


def limited_by(controller: str, cgroup: Path) -> Path:
    """Where the CPU time (`cpu`) or memory (`memory`) of the processes in a lab's `cgroup` can be limited: there, or in
    the cgroup of the same name below the v1 hierarchy of that controller. Errors: NotImplementedError where this
    machine has neither."""
    controllers = cgroup / "cgroup.controllers"
    if controllers.exists() and controller in controllers.read_text().split():
        return cgroup
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount_point, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(","):
            return Path(mount_point) / cgroup.relative_to(cgroup2())
    raise NotImplementedError(f"this machine's cgroups have no controller `{controller}` that a lab may use")


def limit_memory(cgroup: Path, num_bytes: int | None) -> None:
    """Let the processes of a cgroup that is `limited_by` memory have so much of it together; None lifts that."""
    if (cgroup / "memory.max").exists():
        (cgroup / "memory.max").write_text("max" if num_bytes is None else str(num_bytes))
        return
    (cgroup / "memory.limit_in_bytes").write_text(str(-1 if num_bytes is None else num_bytes))


def limit_cpu(cgroup: Path, cores: float | None) -> None:
    """Let the processes of a cgroup that is `limited_by` cpu have `cores` of CPU time together, and have it before what
    is not in a lab; None lifts both."""
    quota = None if cores is None else round(cores * _PERIOD_MICROSECONDS)
    if (cgroup / "cpu.max").exists():
        (cgroup / "cpu.max").write_text(f"{'max' if quota is None else quota} {_PERIOD_MICROSECONDS}")
        (cgroup / "cpu.weight").write_text("100" if quota is None else "10000")
        return
    (cgroup / "cpu.cfs_period_us").write_text(str(_PERIOD_MICROSECONDS))
    (cgroup / "cpu.cfs_quota_us").write_text("-1" if quota is None else str(quota))
    for level in (cgroup, cgroup.parent, cgroup.parent.parent):  # up to that of all labs, beside all else
        (level / "cpu.shares").write_text("1024" if quota is None else "262144")


def claim() -> str:
    """Make the two folders of a new lab of this process; return its name."""
    owner = f"{os.getpid()}-{_start_time(os.getpid())}"
    for number in range(1000):
        name = f"{owner}-{number}"
        if not (FILES / name).exists() and not (cgroups() / name).exists():
            break
    FILES.mkdir(mode=0o755, exist_ok=True)
    (FILES / name).mkdir(mode=0o755)
    cgroups().mkdir(exist_ok=True)
    (cgroups() / name).mkdir()
    return name


def remove_stale() -> list[str]:
    """Remove the labs whose owner is no longer there; return their names."""
    names = {
        folder.name
        for parent in (FILES, cgroups())
        if parent.is_dir()
        for folder in parent.iterdir()
        if folder.is_dir()
    }
    stale = sorted(name for name in names if not _owner_lives(name))
    for name in stale:
        remove(name)
    return stale


def remove(name: str) -> None:
    """End every process of lab `name` and remove its folders."""
    cgroup = cgroups() / name
    with contextlib.suppress(FileNotFoundError):  # another start may be removing it, too
        kill(cgroup)
        for folder in sorted(cgroup.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
            folder.rmdir()
        cgroup.rmdir()
    for controller in ("cpu", "memory"):
        with contextlib.suppress(NotImplementedError):  # as it is without such a controller
            for folder in _with_those_below(limited_by(controller, cgroup)):
                folder.rmdir()
    shutil.rmtree(FILES / name, ignore_errors=True)


def _with_those_below(cgroup: Path) -> list[Path]:
    """The innermost first; none where there is no such cgroup."""
    below = sorted(cgroup.rglob("*/"), key=lambda path: len(path.parts), reverse=True)
    return [*below, *([cgroup] if cgroup.exists() else [])]


def kill(cgroup: Path) -> None:
    """SIGKILL every process in `cgroup` and below, and wait until they are gone."""
    (cgroup / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 20
    while "populated 1" in (cgroup / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes in {cgroup} survive SIGKILL: see its cgroup.procs")
        time.sleep(0.01)


def _owner_lives(name: str) -> bool:
    pid, start, *_ = name.split("-")
    return pid.isdigit() and _start_time(int(pid)) == start


def _start_time(pid: int) -> str | None:
    """Clock ticks since boot at the start of a process: with it, a process id is not taken for an earlier one's."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else fields[19]
