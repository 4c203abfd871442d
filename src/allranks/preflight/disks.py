"""Room, rights and sharing of what a run reads and writes, and memory to load the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from allranks.cluster.node_report import NodePath, NodeReport
from allranks.listing import printable, si_bytes
from allranks.preflight.check import Answer, Check, Subject, found, skipped, unknown
from allranks.preflight.looking import drift, each_node

OUTPUT, MODEL, DATA, TMP, CACHE = "output_dir", "model", "data", "tmp", "cache"
# Logs, events and the manifest of a run without a checkpoint.
_WITHOUT_CHECKPOINTS = 64 * 2**20
_TMP_BYTES = 16 * 2**20
_LOGS_AND_EVENTS = 100  # files of a run beside its checkpoints, for some ten ranks a node
_IN_MEMORY = ("tmpfs", "ramfs")


def _paths(report: NodeReport, *purposes: str) -> list[NodePath]:
    return [path for path in report.paths or () if path.purpose in purposes]


def _at(path: NodePath) -> str:
    return printable(f"{path.purpose} {path.path or '?'}", 512)


def _is_shared(subject: Subject) -> bool:
    """Whether the nodes' output directories are one, as far as their mounts tell."""
    devices = {
        path.device if path.network else None for _, report in subject.reported for path in _paths(report, OUTPUT)
    }
    return len(devices) == 1 and None not in devices


def _writable(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for path in _paths(report, OUTPUT, CACHE, TMP):
            if path.writable is None:
                yield unknown(node, f"whether {_at(path)} can be written is not known")
            elif not path.writable:
                mounted = f" ({printable(path.type)} at {printable(path.mount)})" if path.type and path.mount else ""
                yield found(node, f"{_at(path)} cannot be written{mounted}")

    return _of_paths(subject, look, OUTPUT, CACHE, TMP)


def _readable(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for path in _paths(report, MODEL, DATA):
            if path.exists is None:
                yield unknown(node, f"whether {_at(path)} is there is not known")
            elif not path.exists:
                yield found(node, f"{_at(path)} is not there")
            elif path.readable is False:
                yield found(node, f"{_at(path)} cannot be read by this user")

    return _of_paths(subject, look, MODEL, DATA)


def _of_paths(subject: Subject, look: Callable[[str, NodeReport], Iterable[Answer]], *purposes: str) -> list[Answer]:
    def only_where_named(node: str, report: NodeReport) -> Answer | list[Answer]:
        if report.paths is None:
            return unknown(node, "its paths are not known")
        if not _paths(report, *purposes):
            return skipped(node, f"no path of {' or '.join(purposes)} was asked for")
        return list(look(node, report))

    return each_node(subject, only_where_named)


def _space(subject: Subject) -> list[Answer]:
    wanted, is_shared = subject.wanted, _is_shared(subject)
    share = 1 if is_shared else max(1, len(subject.nodes))
    where = "a filesystem that the nodes share" if is_shared else "this node's part"

    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for path in _paths(report, OUTPUT):
            if path.free is None or path.total == 0:  # some network filesystems do not tell
                yield unknown(node, f"the room at {_at(path)} is not known")
                continue
            one = None if wanted.checkpoint_bytes is None else wanted.checkpoint_bytes // share
            if path.free < (one or 0) + _WITHOUT_CHECKPOINTS:
                needed = "a run" if one is None else f"one checkpoint ({where})"
                yield found(
                    node,
                    f"{_at(path)} has {si_bytes(path.free)} free, and {needed} needs "
                    f"{si_bytes((one or 0) + _WITHOUT_CHECKPOINTS)}",
                )
                continue
            all_of_them = (one or 0) * wanted.num_checkpoints + (wanted.result_bytes if is_shared else 0)
            if path.free < all_of_them:
                yield found(
                    node,
                    f"{_at(path)} has {si_bytes(path.free)} free, and {wanted.num_checkpoints} checkpoints ({where}) "
                    f"need {si_bytes(all_of_them)}",
                    severity="warning",
                )

    return _of_paths(subject, look, OUTPUT)


def _inodes(subject: Subject) -> list[Answer]:
    files = (subject.wanted.checkpoint_files or 0) * subject.wanted.num_checkpoints + _LOGS_AND_EVENTS

    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for path in _paths(report, OUTPUT):
            if not path.inodes:
                yield skipped(node, f"the filesystem of {_at(path)} does not count files")
            elif path.free_inodes is None:
                yield unknown(node, f"how many files {_at(path)} can take is not known")
            elif path.free_inodes < files:
                yield found(
                    node, f"{_at(path)} can take {path.free_inodes:,} more files, and this run needs about {files:,}"
                )

    return _of_paths(subject, look, OUTPUT)


def _tmp(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for path in _paths(report, TMP):
            if path.free is None or path.total == 0:
                yield unknown(node, f"the room at {_at(path)} is not known")
            elif path.free < _TMP_BYTES:
                yield found(node, f"{_at(path)} has {si_bytes(path.free)} free")

    return _of_paths(subject, look, TMP)


def _shared(subject: Subject) -> list[Answer]:
    """What the config requires, which is seldom anything."""
    must = subject.wanted.output_shared
    if must is None:
        return [skipped(subject.nodes, "this run may have one output directory or one on each node")]

    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for path in _paths(report, OUTPUT):
            if path.network is None:
                yield unknown(node, f"whether {_at(path)} is on a shared filesystem is not known")
            elif path.network != must:
                is_on = f"on {printable(path.type)}, " + ("which nodes share" if path.network else "which is its own")
                should = "all nodes must share it" if must else "each node must have its own"
                yield found(node, f"{_at(path)} is {is_on}, and {should}")

    return _of_paths(subject, look, OUTPUT)


def _mounts(subject: Subject) -> list[Answer]:
    """Whether one node has locally what the others share: its filesystem is not mounted there."""
    answers: list[Answer] = []
    # disks.output-shared tells it, where one of both is required.
    for purpose in (*((OUTPUT,) if subject.wanted.output_shared is None else ()), MODEL, DATA, CACHE):
        of_node = {node: next(iter(_paths(report, purpose)), None) for node, report in subject.reported}
        networks = {node: path.network for node, path in of_node.items() if path is not None}
        if not networks or set(networks.values()) <= {False, None}:
            continue  # everywhere its own
        answers += drift(
            subject,
            f"the filesystem of {purpose}",
            {
                node: None
                if path is None or path.network is None
                else f"shared ({printable(path.device)})"
                if path.network
                else "the node's own"
                for node, path in of_node.items()
            },
            not_known="whether it is shared is not known",
        )
    if not answers:
        return [skipped(subject.nodes, "no path of this run is on a shared filesystem, as far as is known")]
    return answers


def _volatile(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for path in _paths(report, OUTPUT):
            if path.type in _IN_MEMORY:
                yield found(node, f"{_at(path)} is in memory ({path.type}): it is gone when the node restarts")

    return _of_paths(subject, look, OUTPUT)


def _memory(subject: Subject) -> list[Answer]:
    needed = subject.wanted.load_bytes

    def look(node: str, report: NodeReport) -> Answer | None:
        if needed is None:
            return skipped(node, "how much memory loading takes is not known")
        total, available, limit = report.memory.total, report.memory.available, report.memory.cgroup_limit
        most = min((one for one in (total, limit) if one is not None), default=None)
        if most is None:
            return unknown(node, "how much memory it has is not known")
        if needed > most:
            whose = "its cgroup allows" if most == limit and limit != total else "it has"
            return found(node, f"loading the model takes {si_bytes(needed)} of memory, and {whose} {si_bytes(most)}")
        if available is not None and needed > available:
            return found(
                node,
                f"loading the model takes {si_bytes(needed)} of memory, and {si_bytes(available)} are available",
                severity="warning",
            )
        return None

    return each_node(subject, look)


CHECKS = (
    Check(
        "disks.readable",
        "Whether the model and the data are there on every node",
        "The ranks of that node end while the others wait for them.",
        "Copy it there, or mount the filesystem that has it",
        "error",
        "Only paths that the config names: what comes from the Hub is loaded first.",
        _readable,
    ),
    Check(
        "disks.writable",
        "Whether output directory, cache and temporary directory can be written",
        "The first log or checkpoint fails.",
        "Give this user the right to write there, choose another --output-dir, or see why it is mounted read-only",
        "error",
        "For a directory that is not there yet, the nearest one above it counts.",
        _writable,
    ),
    Check(
        "disks.output-space",
        "Room for the checkpoints that this config writes",
        "A save fails hours into the run, and what came after the last one is lost.",
        "Free some room there, lower save_total_limit, or choose another --output-dir",
        "error",
        "Less than one checkpoint is an error, less than all that will be there at once warns. On a shared filesystem "
        "the whole checkpoint counts, else each node's part. Quotas are not seen.",
        _space,
    ),
    Check(
        "disks.inodes",
        "How many more files the output directory can take",
        "A filesystem that is full of small files ends with `No space left on device` while `df` shows room.",
        "Remove small files there (`df -i` counts them), or choose another --output-dir",
        "error",
        "Filesystems that do not count files are skipped.",
        _inodes,
    ),
    Check(
        "disks.tmp",
        "Room in the temporary directory",
        "Compilers, trackers and libraries write there, and fail in ways that name something else.",
        "Free some room there, or set TMPDIR to another directory",
        "error",
        "Less than 16 MiB free.",
        _tmp,
    ),
    Check(
        "disks.output-shared",
        "Whether the output directory is one for all nodes, where that is required",
        "What one node writes another looks for in vain, or both write the same file.",
        "Choose an --output-dir that is as required on all nodes",
        "error",
        "Only where the run requires one of both: allranks itself takes either.",
        _shared,
    ),
    Check(
        "disks.mounts",
        "Paths that are shared on most nodes and local on one",
        "Its network filesystem is most likely not mounted there: the node reads or writes an empty folder beneath.",
        "Mount it on the nodes named (`findmnt PATH` on a node that has it shows how)",
        "warning",
        "Where nobody shares a path there is nothing to compare. Filesystems of unknown kind (FUSE) are not known.",
        _mounts,
    ),
    Check(
        "disks.volatile",
        "Whether the output directory is in memory",
        "Checkpoints take the memory that ranks need, and are gone with the node.",
        "Choose an --output-dir on a disk",
        "note",
        "A note only: for a trial it may be wanted.",
        _volatile,
    ),
    Check(
        "disks.memory",
        "Memory of the host to load the model",
        "The kernel ends the ranks of that node while the weights come in.",
        "Start fewer ranks a node, free memory there, or raise the limit of the container or job",
        "error",
        "More than the node or its cgroup has is an error; more than is available just now warns. What a cgroup has "
        "used does not count: most of that is cache, which the kernel gives back.",
        _memory,
    ),
)
