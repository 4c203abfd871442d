"""What a process may have on each node: locked memory, shared memory, open files, processes."""

from __future__ import annotations

from allranks.cluster.node_report import NodeReport
from allranks.listing import si_bytes
from allranks.preflight.check import Answer, Check, Subject, found, skipped, unknown
from allranks.preflight.effective import active, why_no_infiniband
from allranks.preflight.looking import each_node

UNLIMITED = -1
_MIB, _GIB = 2**20, 2**30
# The kernel counts the pinned memory of every queue and buffer; systemd's default of 8 MiB holds not even one
# connection's buffers (NCCL_BUFFSIZE is 4 MiB, and there are several a channel).
_TOO_LITTLE_LOCKED, _LITTLE_LOCKED = 64 * _MIB, _GIB
# Docker's default is 64 MiB. NCCL's segment for each pair of neighbours is about 10 MB a direction.
_TOO_LITTLE_SHARED, _LITTLE_SHARED = 64 * _MIB, 512 * _MIB
# Python, torch and the GPU's driver hold about a hundred; rank 0 holds the store's connection to every rank, and gloo
# one from each rank to each other.
_FILES_AT_LEAST, _FILES_OF_A_RANK = 256, 128
# OpenMP, autograd, NCCL's proxies, the driver: threads count as processes.
_THREADS_OF_A_RANK = 128


def _memlock(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        if reason := why_no_infiniband(subject, node, report):
            return skipped(node, reason)
        if report.infiniband is None:
            return unknown(node, "its InfiniBand adapters are not known")
        if not active(report):
            return skipped(node, "it has no active InfiniBand or RoCE port")
        limit = report.limits.memlock
        if limit is None:
            return unknown(node, "its limit of locked memory is not known")
        if report.uid == 0 and report.system.container is None:
            return None  # the kernel does not hold root to it
        if limit == UNLIMITED or limit >= _LITTLE_LOCKED:
            return None
        is_error = limit < _TOO_LITTLE_LOCKED
        return found(
            node,
            f"a process may lock {si_bytes(limit)} of memory (ulimit -l)",
            severity="error" if is_error else "warning",
        )

    return each_node(subject, look)


def _shm(subject: Subject) -> list[Answer]:
    processes = subject.wanted.nproc_per_node

    def look(node: str, report: NodeReport) -> Answer | None:
        if not subject.wanted.uses_nccl:
            return skipped(node, "this run does not use NCCL, and nothing else takes much of /dev/shm")
        if processes == 1:
            return skipped(node, "one rank a node: NCCL shares memory with none")
        size = report.shm.total
        if size is None:
            return unknown(node, "the size of /dev/shm is not known")
        if size >= _LITTLE_SHARED:
            return None
        return found(
            node,
            f"/dev/shm has {si_bytes(size)}",
            severity="error" if size <= _TOO_LITTLE_SHARED else "warning",
        )

    return each_node(subject, look)


def _shm_full(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        free, total = report.shm.free, report.shm.total
        if free is None or total is None:
            return unknown(node, "the room in /dev/shm is not known")
        if free >= _MIB:
            return None
        return found(node, f"/dev/shm is full: {si_bytes(free)} of {si_bytes(total)} are free")

    return each_node(subject, look)


def _nofile(subject: Subject) -> list[Answer]:
    ranks = len(subject.nodes) * (subject.wanted.nproc_per_node or 1)
    needed = max(_FILES_AT_LEAST, _FILES_OF_A_RANK + ranks)

    def look(node: str, report: NodeReport) -> Answer | None:
        limit = report.limits.nofile
        if limit is None:
            return unknown(node, "its limit of open files is not known")
        if limit == UNLIMITED or limit >= needed:
            return None
        return found(node, f"a process may open {limit} files (ulimit -n); {ranks} ranks need about {needed}")

    return each_node(subject, look)


def _nproc(subject: Subject) -> list[Answer]:
    processes = subject.wanted.nproc_per_node or 1
    needed = _THREADS_OF_A_RANK * processes

    def look(node: str, report: NodeReport) -> Answer | None:
        limit = report.limits.nproc
        if report.uid == 0:
            return None  # the kernel does not hold root to it
        if limit is None:
            return unknown(node, "its limit of processes is not known")
        if limit == UNLIMITED or limit >= needed:
            return None
        return found(
            node,
            f"this user may have {limit} processes and threads (ulimit -u); {processes} ranks need about {needed}",
        )

    return each_node(subject, look)


CHECKS = (
    Check(
        "limits.memlock",
        "Memory that a process may lock, where InfiniBand or RoCE is used",
        "An adapter writes into memory that stays where it is. Below 64 MiB not even one connection's buffers fit, and "
        "NCCL ends with `ibv_reg_mr … Cannot allocate memory`; below 1 GiB larger worlds do.",
        "Set `* - memlock unlimited` in /etc/security/limits.conf, LimitMEMLOCK=infinity for sshd, slurmd or the "
        "container runtime (docker run --ulimit memlock=-1), and log in again",
        "error",
        "Only where this run uses NCCL and the node has an active port that NCCL_IB_HCA selects. The kernel does not "
        "hold root to it outside containers. 64 MiB to 1 GiB only warn.",
        _memlock,
        recorded=True,
    ),
    Check(
        "limits.shm",
        "Size of /dev/shm, where several ranks of a node use NCCL",
        "NCCL's ranks of one node exchange data there. Docker gives 64 MiB, which 8 GPUs overrun: NCCL then ends with "
        "`Error while creating shared memory segment`.",
        "Start the container with --ipc=host or --shm-size=8g, or mount a larger tmpfs at /dev/shm",
        "error",
        "Only with NCCL and more than one rank a node. More than 64 MiB and less than 512 MiB only warn.",
        _shm,
        recorded=True,
    ),
    Check(
        "limits.shm-full",
        "Room left in /dev/shm",
        "Locks and queues of Python and the ranks' shared memory are made there; without room they fail, or the "
        "process dies with a bus error.",
        "Remove what ended runs left in /dev/shm (`ls -l /dev/shm`), or make it larger",
        "error",
        "Less than 1 MiB free, whatever its size.",
        _shm_full,
    ),
    Check(
        "limits.nofile",
        "Files and connections that a process may open",
        "A rank is connected to the others; beyond the limit a run ends with `Too many open files`, often hours in, "
        "when a checkpoint is written.",
        "Raise it (`ulimit -n 65536` in the job, or nofile in /etc/security/limits.conf)",
        "error",
        "At least 256, or 128 and one for each rank of the run: the usual 1,024 is enough for some 900 ranks.",
        _nofile,
    ),
    Check(
        "limits.nproc",
        "Processes and threads that the user may have",
        "Threads count, and a rank has about a hundred: beyond the limit a start ends with `Resource temporarily "
        "unavailable`.",
        "Raise it (`ulimit -u`, or nproc in /etc/security/limits.conf)",
        "error",
        "128 for each rank of the node; root is not held to it. What other processes of the user take is not counted.",
        _nproc,
    ),
)
