"""A disk that is full: what was to be said of the end of a run could not be written there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from allranks.doctor import causes
from allranks.doctor.diagnosis import HOPELESS, LIKELY, Diagnosis, Restart, fingerprint

_LEAST_ROOM_BYTES = 2**16  # an event with its traceback


def is_full(path: Path) -> str:
    """That the disk of `path` is full, with what is free; "" where there is room, or nothing tells."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return ""
    free = disk.f_bavail * disk.f_frsize
    if free >= _LEAST_ROOM_BYTES and (disk.f_favail or not disk.f_files):
        return ""
    return f"the disk of {path} is full ({free} bytes and {disk.f_favail} files are free there)"


def with_full_disk(told: Diagnosis, run: Path) -> Diagnosis:
    """`told` of a run that lies here; where it knows nothing, that the disk of the run has no room now."""
    if told.is_known or told.ended_well or not (full := is_full(run)):
        return told
    return Diagnosis(
        cause=causes.DISK,
        title=f"{full}, and what the ranks wrote there ends without a word of why",
        certainty=LIKELY,
        meaning="What went wrong was to be written there, and could not be.",
        remedy="free some room there, or set output_dir to another disk; node 0's terminal and its run directory may "
        "know more",
        not_proven="That it was full when the run ended, and that nothing else went wrong.",
        look_at=f"df -h {run}; df -i {run}",
        node=socket.gethostname(),
        restart=Restart(HOPELESS, fingerprint(causes.DISK, full), told.restart.step),
        notes=told.notes,
    )
