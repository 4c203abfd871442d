"""Variables of NCCL, gloo and PyTorch on every node, and what an earlier run has left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from allranks.cluster import environments, nccl_variables
from allranks.cluster.nccl_variables import PREFIXES
from allranks.cluster.node_report import NodeReport
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Check, Subject, found, kept, ok, skipped, unknown
from allranks.preflight.looking import NO_REPORT, drift_of_fields, each_node

_LONGEST = 200
_SHOWN = 4
# Of these each node has its own, or they are told by another check.
_OWN = (
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
    *("CUDA_DEVICE_ORDER", "RANK", "LOCAL_RANK", "NODE_RANK", "VIRTUAL_ENV", "CONDA_PREFIX", "TMPDIR"),
)
_COMPARED = ("CUDA_", "TORCH_", "PYTORCH_", "OMP_", "MKL_", "HSA_", "HIP_", "HF_", "UCX_", "FI_", "ACCELERATE_")
_COMPARED_NAMES = ("LD_PRELOAD", "LD_LIBRARY_PATH", "TRANSFORMERS_OFFLINE")
# It makes every rank of that node wait for each kernel, and so every other rank.
_SLOW = "CUDA_LAUNCH_BLOCKING"


@kept
def _settings(subject: Subject) -> dict[str, dict[str, str]]:
    """Each node's settings of the network: as its account has them, nccl.conf included, else as it reported them."""
    settings = {}
    for node, report in subject.reported:
        if (told := subject.network.get(node)) is not None:
            settings[node] = dict(told)
        elif report.environment is not None:
            reported = {name: value for name, value in report.environment.items() if name.startswith(PREFIXES)}
            settings[node] = environments.of_network(reported)
    return settings


def _unreadable(subject: Subject) -> list[Answer]:
    def look(node: str, settings: Mapping[str, str]) -> Iterator[Answer]:
        for line in nccl_variables.unreadable(settings):
            yield found(node, printable(line, 1000))

    return _each(subject, look)


def _doubts(subject: Subject) -> list[Answer]:
    def look(node: str, settings: Mapping[str, str]) -> Iterator[Answer]:
        report = subject.reports[node]
        for line in nccl_variables.doubts(settings, _nccl(report) if report else None):
            yield found(node, printable(line, 1000))

    return _each(subject, look)


def _nccl(report: NodeReport) -> str | None:
    versions = {name: package.version for name, package in (report.packages or {}).items()}
    return next((version for name, version in versions.items() if name.startswith("nvidia-nccl") and version), None)


def _each(subject: Subject, look: Callable[[str, Mapping[str, str]], Iterable[Answer]]) -> list[Answer]:
    settings = _settings(subject)

    def of_node(node: str, report: NodeReport) -> Answer | list[Answer]:
        if node not in settings:
            return unknown(node, "its environment is not known")
        return list(look(node, settings[node]))

    return each_node(subject, of_node)


def _must_be_equal(subject: Subject) -> list[Answer]:
    settings = _settings(subject)
    return drift_of_fields(
        subject,
        {node: environments.must_be_equal(of) for node, of in settings.items()},
        not_known="its environment is not known",
        absent="not set, or the default",
    )


def _differs(subject: Subject) -> Iterator[Answer]:
    settings = _settings(subject)
    if len(subject.nodes) == 1:
        yield skipped(subject.nodes, "there is no other node")
        return
    tables: dict[str, dict[str, str] | None] = {}
    for node, report in subject.reported:
        if node not in settings or report.environment is None:
            tables[node] = None
            continue
        others = {
            name: value
            for name, value in report.environment.items()
            if (name.startswith(_COMPARED) or name in _COMPARED_NAMES)
            and not name.startswith(PREFIXES)
            and name not in (*_OWN, _SLOW)
        }
        of_network = {name: value for name, value in settings[node].items() if not environments.binds(name)}
        tables[node] = {**others, **of_network}
    yield from drift_of_fields(subject, tables, not_known="its environment is not known")


def _slow(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        if report.environment is None:
            return unknown(node, "its environment is not known")
        value = report.environment.get(_SLOW)
        return found(node, f"{_SLOW}={printable(value, _LONGEST)} is set") if value not in (None, "", "0") else None

    return each_node(subject, look)


def _leftovers(subject: Subject) -> Iterator[Answer]:
    yield unknown(subject.silent, NO_REPORT)
    for node, report in subject.reported:
        if report.leftovers is None:
            yield unknown(node, "which processes run there is not known")
            continue
        for is_orphan in (True, False):
            of_it = [one for one in report.leftovers if bool(one.orphan) == is_orphan]
            if of_it:
                told = few(
                    (
                        f"pid {one.pid or '?'} of {printable(one.user or 'an unknown user', _LONGEST)} "
                        f"({printable(one.command or 'unknown command', _LONGEST)})"
                        for one in of_it
                    ),
                    _SHOWN,
                )
                what = "ranks of a run whose launcher is gone" if is_orphan else "ranks of another run"
                yield found(node, f"{what}: {told}", severity=None if is_orphan else "note")
        if not report.leftovers:
            yield ok(node)


CHECKS = (
    Check(
        "environment.unreadable",
        "Values that NCCL reads as another one",
        "NCCL goes on with a number of its own and does not say so.",
        "Set it to a whole number on the nodes named, or unset it",
        "error",
        "Read as C's strtol reads it, as NCCL does.",
        _unreadable,
    ),
    Check(
        "environment.must-match",
        "Variables that must be the same on all nodes",
        "With other values of these NCCL's ranks wait for each other for ever, or refuse each other.",
        "Set the same on all nodes, or unset it everywhere; the config's network: section sets it for all ranks",
        "error",
        "In one spelling (0x1 is 1), and a default is as good as not set. Those that may differ are notes of "
        "environment.differs.",
        _must_be_equal,
    ),
    Check(
        "environment.doubts",
        "Variables that do nothing: unknown, misspelt, removed, too new",
        "What was to be set is not.",
        "Correct or unset it on the nodes named",
        "warning",
        "Names that plugins of NCCL have, and those of newer versions that are documented, are known.",
        _doubts,
    ),
    Check(
        "environment.slow",
        "Variables that make a rank slow",
        "CUDA_LAUNCH_BLOCKING makes a rank wait for each kernel, and the other ranks wait for it.",
        "Unset it on the nodes named",
        "warning",
        "Not where it is 0 or empty.",
        _slow,
    ),
    Check(
        "environment.differs",
        "Variables that are not the same everywhere, and may differ",
        "Worth knowing when one node behaves unlike the others.",
        "Nothing need be done",
        "note",
        "A note only. What each node has of its own (CUDA_VISIBLE_DEVICES, files of logs) is not compared.",
        _differs,
    ),
    Check(
        "environment.leftovers",
        "Ranks that an earlier run has left",
        "They hold memory of GPUs, ports and files.",
        "End them on the nodes named (`kill PID`), if they are yours",
        "warning",
        "Those whose launcher has ended; ranks of a run that goes on, yours or another user's, are a note.",
        _leftovers,
    ),
)
