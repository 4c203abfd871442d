"""Lists of the nodes that passed and failed, in the forms that ssh, Slurm and PBS take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from allranks import durable
from allranks.cluster.nodes import Host
from allranks.disk import disk_told
from allranks.launch.preflight.together import Judged
from allranks.preflight.folding import fold


def write_host_lists(folder: Path, judged: Judged, hosts: Sequence[Host] = ()) -> None:
    """Write into `folder`: `passing` and `failing`, a host a line as --hostfile takes it; `slurm-exclude`, for
    `--exclude=`; `pbs-select`, for `-l select=`. `hosts`: as the user named the nodes, by node rank.

    Raises DiskError.
    """
    failing = set(judged.judgement.failing)
    named = [*hosts] if hosts else [Host(name) for name in judged.hosts]
    pairs = list(zip(named, judged.hosts, strict=True))
    passed = [host for host, name in pairs if name not in failing]
    failed = [host for host, name in pairs if name in failing]
    files = {
        "passing": "".join(f"{_line(host)}\n" for host in passed),
        "failing": "".join(f"{_line(host)}\n" for host in failed),
        "slurm-exclude": f"{fold(host.name for host in failed)}\n" if failed else "",
        "pbs-select": "+".join(f"1:host={host.name}" for host in passed) + "\n" if passed else "",
    }
    for name, text in files.items():
        with disk_told("the list of hosts is not written", folder / name):
            durable.write(folder / name, text, make_parents=True)


def _line(host: Host) -> str:
    return f"{host} slots={host.slots}" if host.slots is not None else str(host)
