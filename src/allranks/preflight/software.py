"""Packages, drivers, firmware and systems: what all nodes should have, and alike."""

from __future__ import annotations

from collections.abc import Mapping

from allranks.cluster.node_report import NodeReport
from allranks.preflight.check import Answer, Check, Subject, found, skipped
from allranks.preflight.effective import selected, why_no_infiniband
from allranks.preflight.looking import drift, drift_of_fields, each_node
from allranks.preflight.stated import MAJORITY, NOT_INSTALLED, PACKAGE, fields_of, kind_of

# A run uses these whatever its config says; another package that differs may be one that it never imports.
_ALWAYS_USED = ("allranks", "torch", "transformers", "peft", "safetensors", "datasets", "tokenizers", "numpy")


def _packages_of(subject: Subject, kind: str) -> dict[str, dict[str, str] | None]:
    """Versions by name: what the nodes say must match, and what was found besides."""
    stated = fields_of(subject, kind)
    all_state = all(stated[node] for node, _ in subject.reported)
    tables: dict[str, dict[str, str] | None] = {}
    for node, report in subject.reported:
        listed = {
            name: package.version or NOT_INSTALLED
            for name, package in (report.packages or {}).items()
            if kind_of(PACKAGE + name) == kind
        }
        own = {name.removeprefix(PACKAGE): value for name, value in (stated[node] or {}).items()} if all_state else {}
        tables[node] = {**listed, **own} if report.packages is not None or own else None
    return tables


def _packages(subject: Subject) -> list[Answer]:
    tables = _packages_of(subject, "packages")
    stated = {name.removeprefix(PACKAGE) for table in subject.must_match.values() for name in table}
    # One that is missing is told by parity.installed.
    missing = {name for name in subject.wanted.packages for table in tables.values() if table and _lacks(table, name)}
    used: dict[str, dict[str, str] | None] = {}
    others: dict[str, dict[str, str] | None] = {}
    for node, table in tables.items():
        kept = None if table is None else {name: value for name, value in table.items() if name not in missing}
        is_used = stated | set(_ALWAYS_USED) | set(subject.wanted.packages)
        used[node] = None if kept is None else {name: value for name, value in kept.items() if name in is_used}
        others[node] = None if kept is None else {name: value for name, value in kept.items() if name not in is_used}
    return [
        *drift_of_fields(subject, used, absent=NOT_INSTALLED, not_known="its packages are not known"),
        *drift_of_fields(
            subject, others, absent=NOT_INSTALLED, not_known="its packages are not known", severity="warning"
        ),
    ]


def _lacks(table: Mapping[str, str], name: str) -> bool:
    return table.get(name) == NOT_INSTALLED


def _installed(subject: Subject) -> list[Answer]:
    tables = _packages_of(subject, "packages")

    def look(node: str, report: NodeReport) -> Answer | None:
        missing = [name for name in subject.wanted.packages if _lacks(tables[node] or {}, name)]
        where = f" in the Python at {report.python.executable}" if report.python.executable else ""
        return found(node, f"{', '.join(missing)} {NOT_INSTALLED}{where}") if missing else None

    return each_node(subject, look)


def _nccl(subject: Subject) -> list[Answer]:
    if not subject.wanted.uses_nccl:
        return [skipped(subject.nodes, "this run does not use NCCL")]
    tables = _packages_of(subject, "nccl")
    return drift_of_fields(subject, tables, absent=NOT_INSTALLED, not_known="its packages are not known")


def _driver(subject: Subject) -> list[Answer]:
    if subject.wanted.device != "cuda":
        return [skipped(subject.nodes, "this run does not use GPUs")]
    systems = {node: report.gpu_system for node, report in subject.reported}
    with_cuda = all(one.cuda for one in systems.values())
    return drift(
        subject,
        "the GPU driver",
        {
            node: None if one.driver is None else one.driver + (f" (CUDA {one.cuda})" if with_cuda else "")
            for node, one in systems.items()
        },
        not_known="its GPU driver is not known",
    )


def _firmware(subject: Subject) -> list[Answer]:
    tables: dict[str, dict[str, str] | None] = {}
    for node, report in subject.reported:
        if why_no_infiniband(subject, node, report) is None and report.infiniband is not None:
            by_model: dict[str, set[str]] = {}
            for port in selected(report):
                if port.model and port.firmware:
                    by_model.setdefault(f"firmware of {port.model}", set()).add(port.firmware)
            tables[node] = {model: ", ".join(sorted(versions)) for model, versions in by_model.items()}
    if not tables:
        return [skipped(subject.nodes, "no node uses InfiniBand or RoCE, as far as is known")]
    # Adapters of another model have firmware of another version.
    on_all = set.intersection(*(set(table or ()) for table in tables.values()))
    common = {node: {name: of[name] for name in of if name in on_all} for node, of in tables.items() if of is not None}
    return drift_of_fields(subject, common, not_known="its adapters are not known, or it uses none")


def _system(subject: Subject) -> list[Answer]:
    return drift_of_fields(
        subject,
        {
            node: {
                name: value
                for name, value in (("the kernel", report.system.kernel), ("the operating system", report.system.os))
                if value
            }
            or None
            for node, report in subject.reported
        },
        not_known="its kernel is not known",
    )


CHECKS = (
    Check(
        "parity.installed",
        "The packages without which nothing starts",
        "On that node no rank would start, and the others would wait for it.",
        "Install it on the nodes named, in the environment that starts the run, or activate that environment there",
        "error",
        "A package that could not be looked up is not known, and none that is missing.",
        _installed,
    ),
    Check(
        "parity.packages",
        "The versions of packages",
        "Other versions of torch do not speak with each other; other versions of the rest make other data and models.",
        "Install the same versions on all nodes (`pip freeze` on one that agrees, `pip install -r` on those named)",
        "error",
        MAJORITY + "Packages that every run uses, or that this one names, are errors; others that differ only warn.",
        _packages,
    ),
    Check(
        "parity.nccl",
        "The version of NCCL",
        "NCCL refuses peers of another version: `NCCL WARN … version mismatch`, or a hang while connecting.",
        "Install the same torch, which brings its NCCL, on all nodes",
        "error",
        MAJORITY + "Only where this run uses NCCL, and by the packages: an NCCL that LD_PRELOAD brings is not seen.",
        _nccl,
        recorded=True,
    ),
    Check(
        "parity.driver",
        "The GPU driver and its CUDA",
        "Peers with other drivers work most of the time; faults that only one node has often come from here.",
        "Bring the nodes named to the driver of the others when the run can wait",
        "warning",
        MAJORITY + "A warning: CUDA's compatibility allows it.",
        _driver,
        recorded=True,
    ),
    Check(
        "parity.firmware",
        "The firmware of InfiniBand and RoCE adapters",
        "Adapters of one model with other firmware have other defaults, of congestion control above all.",
        "Bring the adapters of the nodes named to the firmware of the others (`mlxfwmanager`)",
        "warning",
        MAJORITY + "Only adapters of a model that all nodes have, and only where this run uses them.",
        _firmware,
        recorded=True,
    ),
    Check(
        "parity.system",
        "The kernel and the operating system",
        "Worth knowing when one node behaves unlike the others.",
        "Nothing need be done",
        "note",
        "A note only: mixed kernels are usual while nodes are updated one after the other.",
        _system,
    ),
)
