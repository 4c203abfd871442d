"""The filesystem that a path lies on, and what is left there. Each path is asked by itself: any may hang."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node

_NETWORK = frozenset(
    [
        *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "wekafs", "afs", "9p", "pvfs2", "panfs"),
        *("glusterfs", "orangefs", "gfs2", "ocfs2", "virtiofs"),
        *("fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.sshfs", "fuse.juicefs", "fuse.JuiceFS", "fuse.s3fs"),
        *("fuse.gcsfuse", "fuse.goofys", "fuse.rclone", "fuse.mount-s3", "fuse.mountpoint-s3", "fuse.blobfuse"),
        *("fuse.blobfuse2", "fuse.alluxio-fuse", "fuse.seaweedfs", "fuse.dfuse", "fuse.cvmfs2"),
    ]
)
_UNKNOWN = ("fuse", "autofs")
"""What lies behind these need not be this machine's."""


def look_at_shm(node: Node, reporter: Reporter) -> Iterator[Found]:
    reporter.doing("/dev/shm")
    sizes = _sizes(node, "/dev/shm", _mount_of("/dev/shm", _mounts(node)))
    yield {"shm": {"total": sizes.get("total"), "free": sizes.get("free")}}


def look_at_path(node: Node, reporter: Reporter, path: str, purpose: str) -> Iterator[Found]:
    reporter.doing(path)
    place = os.path.abspath(os.path.expanduser(path)) if node.is_live else path
    mounts = _mounts(node)
    found = {"path": path, "purpose": purpose, **_mount_of(place, mounts)}
    yield {"paths": [found]}  # known even where nobody who looks at it comes back
    real = os.path.realpath(place) if node.is_live else place
    exists = _is_there(node, real)
    nearest = real
    while not _is_there(node, nearest) and nearest != "/":
        nearest = os.path.dirname(nearest)
    mount = _mount_of(nearest, mounts)
    access = {
        "readable": None if exists is False else os.access(node.place(real), os.R_OK),
        "writable": "ro" not in _options(nearest, mounts) and _may_write(node.place(nearest), exists),
    }
    yield {"paths": [{**found, **mount, "exists": exists, **access, **_sizes(node, nearest, mount)}]}


def _is_there(node: Node, path: str) -> bool | None:
    """None where a folder above it may not be searched. Raises OSError for a mount that is stale."""
    try:
        os.stat(node.place(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return None
    return True


def _may_write(nearest: Path, exists: bool | None) -> bool:
    """Whether this user may write what is there, or make what is not."""
    is_folder = nearest.is_dir()
    return (is_folder or exists is True) and os.access(nearest, os.W_OK | (os.X_OK if is_folder else 0))


def _mounts(node: Node) -> list[list[str]]:
    """Of each mount its point, type, source and options (proc(5), mountinfo)."""
    found = []
    for line in (node.text("/proc/self/mountinfo") or "").splitlines():
        first, _, last = line.partition(" - ")
        left, right = first.split(), last.split()
        if len(left) > 5 and len(right) > 2:
            found.append([_plain(left[4]), right[0], _plain(right[1]), f"{left[5]},{right[2]}"])
    return found


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def _over(path: str, mounts: Sequence[Sequence[str]]) -> Sequence[str]:
    """The innermost mount; of several at one point the last one hides the others."""
    over = [mount for mount in mounts if path == mount[0] or path.startswith(mount[0].rstrip("/") + "/")]
    deepest = max((len(mount[0]) for mount in over), default=0)
    return next((mount for mount in reversed(over) if len(mount[0]) == deepest), ())


def _options(path: str, mounts: Sequence[Sequence[str]]) -> list[str]:
    over = _over(path, mounts)
    return over[3].split(",") if over else []


def _mount_of(path: str, mounts: Sequence[Sequence[str]]) -> dict[str, Any]:
    over = _over(path, mounts)
    if not over:
        return {}
    point, kind, source, _ = over
    network = True if kind in _NETWORK else None if kind.startswith(_UNKNOWN) else False
    return {"mount": point, "type": kind, "device": source, "network": network}


def _sizes(node: Node, path: str, mount: dict[str, Any]) -> dict[str, Any]:
    """Free is what is free for this user."""
    if not node.is_live:
        return dict(node.recorded.get("filesystems", {}).get(mount.get("mount"), {}))
    on = os.statvfs(path)
    sizes = {"total": on.f_blocks * on.f_frsize, "free": on.f_bavail * on.f_frsize}
    # Some filesystems have no fixed number of inodes and say 0.
    return {**sizes, **({"inodes": on.f_files, "free_inodes": on.f_favail} if on.f_files else {})}
