"""What all nodes should have alike: config, data, model, code, Python, packages, drivers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from allranks.cluster.node_report import NodeReport
from allranks.preflight.check import Answer, Check, Subject, found, skipped
from allranks.preflight.effective import selected, why_no_infiniband
from allranks.preflight.looking import drift, drift_of_fields, each_node

NOT_INSTALLED = "not installed"
_PACKAGE, _PYTHON, _CODE = "package ", "python", "code of allranks"
_NCCL = ("nvidia-nccl", "rccl")
# A run uses these whatever its config says; another package that differs may be one that it never imports.
_ALWAYS_USED = ("allranks", "torch", "transformers", "peft", "safetensors", "datasets", "tokenizers", "numpy")
# `KEY: FILE` and what it is (model.files); a key of the config has no blank in it.
_FILE = re.compile(r"[a-z_]+: (?P<file>.+)", re.DOTALL)
_OF_TOKENIZERS = re.compile(r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template)|.*\.(tiktoken|jinja)$")
_DATA = ("data fingerprint", "data: ")


def kind_of(name: str) -> str:
    """Which check a field that must match belongs to."""
    if name in (_PYTHON, _CODE):
        return {_PYTHON: "python", _CODE: "code"}[name]
    if name.startswith(_PACKAGE):
        return "nccl" if name.removeprefix(_PACKAGE).startswith(_NCCL) else "packages"
    if name.startswith(_DATA):
        return "data"
    if (file := _FILE.fullmatch(name)) is not None:
        is_tokenizer = name.startswith("tokenizer") or _OF_TOKENIZERS.match(file["file"])
        return "tokenizer" if is_tokenizer else "model"
    return "config"


def _fields(subject: Subject, kind: str) -> dict[str, dict[str, str] | None]:
    """Of what must match, the fields of one kind; None where a node did not say what it has."""
    return {
        node: None
        if (table := subject.must_match.get(node)) is None
        else {name: value for name, value in table.items() if kind_of(name) == kind}
        for node in subject.nodes
    }


def _of_what_must_match(kind: str, nothing: str) -> Callable[[Subject], list[Answer]]:
    def look(subject: Subject) -> list[Answer]:
        tables = _fields(subject, kind)
        if not any(tables.values()) and any(table is not None for table in tables.values()):
            return [skipped(subject.nodes, nothing)]
        return drift_of_fields(subject, tables, not_known="it did not say what it has")

    return look


def _all_say(subject: Subject, name: str) -> dict[str, str | None] | None:
    """The field's value on every node, if all that reported have it."""
    values: dict[str, str | None] = {node: subject.must_match.get(node, {}).get(name) for node in subject.nodes}
    return values if subject.reported and all(values[node] is not None for node, _ in subject.reported) else None


def _python(subject: Subject) -> list[Answer]:
    of_reports = {node: report.python.version for node, report in subject.reported}
    return drift(subject, "Python", _all_say(subject, _PYTHON) or of_reports)


def _code(subject: Subject) -> list[Answer]:
    if digests := _all_say(subject, _CODE):
        return drift(subject, "the code of allranks", digests)

    sources = {node: report.code.digest for node, report in subject.reported}
    if sources and all(sources.values()):
        return drift(subject, "the code of allranks", sources)

    def described(report: NodeReport) -> str | None:
        commit, changes = report.code.commit, report.code.dirty
        if commit is None:
            return None
        return f"commit {commit[:12]}" + (f" with changes ({changes[:12]})" if changes else "")

    values = {node: described(report) for node, report in subject.reported}
    return drift(subject, "the code of allranks", values, not_known="it is in no checkout of git")


def _packages_of(subject: Subject, kind: str) -> dict[str, dict[str, str] | None]:
    """Versions by name: what the nodes say must match, and what was found besides."""
    stated = _fields(subject, kind)
    all_state = all(stated[node] for node, _ in subject.reported)
    tables: dict[str, dict[str, str] | None] = {}
    for node, report in subject.reported:
        listed = {
            name: package.version or NOT_INSTALLED
            for name, package in (report.packages or {}).items()
            if kind_of(_PACKAGE + name) == kind
        }
        own = {name.removeprefix(_PACKAGE): value for name, value in (stated[node] or {}).items()} if all_state else {}
        tables[node] = {**listed, **own} if report.packages is not None or own else None
    return tables


def _packages(subject: Subject) -> list[Answer]:
    tables = _packages_of(subject, "packages")
    stated = {name.removeprefix(_PACKAGE) for table in subject.must_match.values() for name in table}
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


_MAJORITY = "Whoever deviates from more than half of the nodes is named; where there is no such majority, as with two, "
_MAJORITY += "both values are told. "

CHECKS = (
    Check(
        "parity.config",
        "The config, key by key, and the launch's options",
        "Ranks that train with other settings make another model, or wait for each other in another order and hang.",
        "Copy the config of the nodes that agree to those that are named, or start with the same options",
        "error",
        _MAJORITY + "Values are compared once the config is resolved: another spelling or order of keys is none, and "
        "names of interfaces and adapters may differ.",
        _of_what_must_match("config", "the nodes have no config to compare"),
    ),
    Check(
        "parity.data",
        "The data, by its content",
        "Each rank takes its part by number: with other data on one node, samples are missed and others seen twice.",
        "Copy the data anew to the nodes named, or put it on a filesystem that all share",
        "error",
        _MAJORITY + "Only the content counts, not the path, the owner or the time.",
        _of_what_must_match("data", "the nodes have not read their data yet"),
    ),
    Check(
        "parity.tokenizer",
        "The tokenizer's files, by their content",
        "The same text becomes other tokens.",
        "Copy the tokenizer anew to the nodes named",
        "error",
        _MAJORITY + "Only files of a folder that the config names; a name of the Hub is compared once it is there.",
        _of_what_must_match("tokenizer", "no folder of a tokenizer is named"),
    ),
    Check(
        "parity.model",
        "The model's files, by their content",
        "The ranks begin with other weights, and what they average is no model.",
        "Copy the model anew to the nodes named",
        "error",
        _MAJORITY + "Weights over 2 GiB are compared by samples of every tensor, all else by every byte.",
        _of_what_must_match("model", "no folder of a model is named"),
    ),
    Check(
        "parity.code",
        "The code of allranks",
        "Ranks with other code do other things at the same step: they hang, or train something else.",
        "Install the same version on all nodes, or check out the same commit",
        "error",
        _MAJORITY + "By the content of the sources; only where that is not known by the commit and a hash of what "
        "differs from it.",
        _code,
    ),
    Check(
        "parity.python",
        "The version of Python",
        "What one version writes another may not read: Python 3.11.3 and 3.11.4 pickle differently.",
        "Use the same Python on all nodes: the same container, module or environment",
        "error",
        _MAJORITY + "By the interpreter that starts the ranks.",
        _python,
    ),
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
        _MAJORITY + "Packages that every run uses, or that this one names, are errors; others that differ only warn.",
        _packages,
    ),
    Check(
        "parity.nccl",
        "The version of NCCL",
        "NCCL refuses peers of another version: `NCCL WARN … version mismatch`, or a hang while connecting.",
        "Install the same torch, which brings its NCCL, on all nodes",
        "error",
        _MAJORITY + "Only where this run uses NCCL, and by the packages: an NCCL that LD_PRELOAD brings is not seen.",
        _nccl,
        recorded=True,
    ),
    Check(
        "parity.driver",
        "The GPU driver and its CUDA",
        "Peers with other drivers work most of the time; faults that only one node has often come from here.",
        "Bring the nodes named to the driver of the others when the run can wait",
        "warning",
        _MAJORITY + "A warning: CUDA's compatibility allows it.",
        _driver,
        recorded=True,
    ),
    Check(
        "parity.firmware",
        "The firmware of InfiniBand and RoCE adapters",
        "Adapters of one model with other firmware have other defaults, of congestion control above all.",
        "Bring the adapters of the nodes named to the firmware of the others (`mlxfwmanager`)",
        "warning",
        _MAJORITY + "Only adapters of a model that all nodes have, and only where this run uses them.",
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
