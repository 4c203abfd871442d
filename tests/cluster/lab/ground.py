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
    shutil.rmtree(FILES / name, ignore_errors=True)


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
