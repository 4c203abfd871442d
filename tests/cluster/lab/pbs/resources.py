"""Resource requests: `-l select=2:ncpus=4:ngpus=4 -l place=scatter`, and which hosts answer one."""

from __future__ import annotations

import re
from dataclasses import dataclass

NCPUS = 4
NGPUS = 4
KNOWN = ("ncpus", "ngpus", "mem", "mpiprocs", "ompthreads", "host")


class BadRequest(Exception):
    pass


@dataclass(frozen=True)
class Chunk:
    """One chunk of a select statement. `num_processes`: its lines in PBS_NODEFILE. `threads`: its OMP_NUM_THREADS."""

    ncpus: int
    ngpus: int
    num_processes: int
    threads: int
    host: str | None


def parse_select(text: str) -> list[Chunk]:
    """`[N:]name=value:…[+…]`. Errors: BadRequest."""
    chunks = []
    for part in text.split("+"):
        words = part.split(":")
        count = int(words.pop(0)) if re.fullmatch(r"[0-9]+", words[0]) else 1
        values = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or not value:
                raise BadRequest("Illegal attribute or resource value Resource_List.select")
            if name not in KNOWN:
                raise BadRequest(f"Unknown resource Resource_List.{name}")
            values[name] = value
        try:
            ncpus = int(values.get("ncpus", 1))
            num_processes = int(values.get("mpiprocs", 1 if ncpus else 0))
            chunk = Chunk(
                ncpus,
                int(values.get("ngpus", 0)),
                num_processes,
                int(values.get("ompthreads", ncpus)),
                values.get("host"),
            )
        except ValueError:
            raise BadRequest("Illegal attribute or resource value Resource_List.select") from None
        chunks += [chunk] * count
    return chunks


def parse_nodes(text: str) -> list[Chunk]:
    """The old form `nodes=N:ppn=P`, as OpenPBS converts it. Errors: BadRequest, also for gpus=, which is Torque's."""
    count, *words = text.split(":")
    chunk = "ncpus=1"
    for word in words:
        found = re.fullmatch(r"ppn=([0-9]+)", word)
        if not found:
            raise BadRequest("Illegal attribute or resource value Resource_List.nodes")
        chunk = f"ncpus={found[1]}:mpiprocs={found[1]}"
    return parse_select(f"{count}:{chunk}")


def allocate(chunks: list[Chunk], scatter: bool, free: dict[str, tuple[int, int]]) -> list[str] | None:
    """A host for every chunk, or None when there are not enough. `free`: cpus and GPUs by host."""
    left = dict(free)
    hosts = []
    for chunk in chunks:
        for host, (cpus, gpus) in left.items():
            if cpus >= chunk.ncpus and gpus >= chunk.ngpus and chunk.host in (None, host):
                hosts.append(host)
                left[host] = (cpus - chunk.ncpus, gpus - chunk.ngpus)
                if scatter:
                    del left[host]
                break
        else:
            return None
    return hosts
