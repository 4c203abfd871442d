"""What all nodes should have alike: config, data, model, code, Python."""

from __future__ import annotations

from collections.abc import Callable

from allranks.cluster.node_report import NodeReport
from allranks.preflight.check import Answer, Check, Subject, skipped
from allranks.preflight.looking import drift, drift_of_fields
from allranks.preflight.stated import CODE, MAJORITY, PYTHON, all_say, fields_of


def _of_what_must_match(kind: str, nothing: str) -> Callable[[Subject], list[Answer]]:
    def look(subject: Subject) -> list[Answer]:
        tables = fields_of(subject, kind)
        if not any(tables.values()) and any(table is not None for table in tables.values()):
            return [skipped(subject.nodes, nothing)]
        return drift_of_fields(subject, tables, not_known="it did not say what it has")

    return look


def _python(subject: Subject) -> list[Answer]:
    of_reports = {node: report.python.version for node, report in subject.reported}
    return drift(subject, "Python", all_say(subject, PYTHON) or of_reports)


def _code(subject: Subject) -> list[Answer]:
    if digests := all_say(subject, CODE):
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


CHECKS = (
    Check(
        "parity.config",
        "The config, key by key, and the launch's options",
        "Ranks that train with other settings make another model, or wait for each other in another order and hang.",
        "Copy the config of the nodes that agree to those that are named, or start with the same options",
        "error",
        MAJORITY + "Values are compared once the config is resolved: another spelling or order of keys is none, and "
        "names of interfaces and adapters may differ.",
        _of_what_must_match("config", "the nodes have no config to compare"),
    ),
    Check(
        "parity.data",
        "The data, by its content",
        "Each rank takes its part by number: with other data on one node, samples are missed and others seen twice.",
        "Copy the data anew to the nodes named, or put it on a filesystem that all share",
        "error",
        MAJORITY + "Only the content counts, not the path, the owner or the time.",
        _of_what_must_match("data", "the nodes have not read their data yet"),
    ),
    Check(
        "parity.tokenizer",
        "The tokenizer's files, by their content",
        "The same text becomes other tokens.",
        "Copy the tokenizer anew to the nodes named",
        "error",
        MAJORITY + "Only files of a folder that the config names; a name of the Hub is compared once it is there.",
        _of_what_must_match("tokenizer", "no folder of a tokenizer is named"),
    ),
    Check(
        "parity.model",
        "The model's files, by their content",
        "The ranks begin with other weights, and what they average is no model.",
        "Copy the model anew to the nodes named",
        "error",
        MAJORITY + "Weights over 2 GiB are compared by samples of every tensor, all else by every byte; with "
        "`allranks check --deep` weights, too.",
        _of_what_must_match("model", "no folder of a model is named"),
    ),
    Check(
        "parity.code",
        "The code of allranks",
        "Ranks with other code do other things at the same step: they hang, or train something else.",
        "Install the same version on all nodes, or check out the same commit",
        "error",
        MAJORITY + "By the content of the sources; only where that is not known by the commit and a hash of what "
        "differs from it.",
        _code,
    ),
    Check(
        "parity.python",
        "The version of Python",
        "What one version writes another may not read: Python 3.11.3 and 3.11.4 pickle differently.",
        "Use the same Python on all nodes: the same container, module or environment",
        "error",
        MAJORITY + "By the interpreter that starts the ranks.",
        _python,
    ),
)
