"""The two ways in which checks look: at each node by itself, and at what differs between nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from allranks.cluster.account_differences import LONGEST_VALUE
from allranks.cluster.environments import NOT_SET
from allranks.cluster.majority import groups
from allranks.cluster.node_report import NodeReport
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Severity, Subject, found, ok, skipped, unknown
from allranks.preflight.folding import fold

NO_REPORT = "it gave no report"
_SHOWN_VALUES = 4


def each_node(subject: Subject, look: Callable[[str, NodeReport], Answer | Iterable[Answer] | None]) -> list[Answer]:
    """What `look` says of every node that reported; None is ok, and a node without a report is unknown."""
    answers = [unknown(subject.silent, NO_REPORT)] if subject.silent else []
    for node, report in subject.reported:
        said = look(node, report)
        if said is None:
            answers.append(ok(node))
        elif isinstance(said, Answer):
            answers.append(said)
        else:
            answers += list(said) or [ok(node)]
    return answers


def drift(
    subject: Subject,
    name: str,
    values: Mapping[str, str | None],
    *,
    severity: Severity | None = None,
    not_known: str = "not known",
) -> list[Answer]:
    """Who deviates in `name` from most; both values where there is no majority. None is not known."""
    table = {node: None if value is None else {name: value} for node, value in values.items()}
    return drift_of_fields(subject, table, severity=severity, not_known=not_known)


def drift_of_fields(
    subject: Subject,
    tables: Mapping[str, Mapping[str, str] | None],
    *,
    severity: Severity | None = None,
    not_known: str = "not known",
    absent: str = NOT_SET,
) -> list[Answer]:
    """The same for every field of the nodes' tables; a field that a table lacks is `absent` there.

    A node that is in no table, or None, is not known.
    """
    known = {node: table for node in subject.nodes if (table := tables.get(node)) is not None}
    answers = [
        unknown(node, NO_REPORT if subject.reports[node] is None and not tables.get(node) else not_known)
        for node in subject.nodes
        if node not in known
    ]
    if len(subject.nodes) == 1:
        return [*answers, skipped(known, "there is no other node")] if known else answers
    if len(known) == 1:
        return [*answers, unknown(known, "of no other node it is known")]
    deviating: set[str] = set()
    for name in sorted({name for table in known.values() for name in table}):
        of = [(node, table.get(name, absent)) for node, table in known.items()]
        for answer in _deviations(subject, name, of, severity):
            deviating.update(answer.nodes)
            answers.append(answer)
    if fine := [node for node in known if node not in deviating]:
        answers.append(ok(*fine))
    return answers


def _deviations(
    subject: Subject, name: str, values: Sequence[tuple[str, str]], severity: Severity | None
) -> Iterable[Answer]:
    if len({value for _, value in values}) == 1:
        return
    by_value = groups(values)
    shown = printable(name, LONGEST_VALUE)
    if by_value.majority is None:
        has_here = next((value for node, value in values if node == subject.starting), None)
        parts = [
            f"{_shown(value)} on {fold(nodes)}{' (here)' if value == has_here else ''}" for value, nodes in by_value.of
        ]
        # None is to blame more than another, so all are named.
        yield found(
            [node for node, _ in values],
            f"{shown} is not the same: {few(parts, _SHOWN_VALUES, between='; ')}",
            severity=severity,
        )
        return
    (usual, holders), *others = by_value.of
    of = f"{len(holders)} others have" if len(holders) > 1 else "the other has"
    for value, nodes in others:
        yield found(nodes, f"{shown} is {_shown(value)}, where {of} {_shown(usual)}", severity=severity)


def _shown(value: str) -> str:
    return printable(value, LONGEST_VALUE) or "empty"


def below(
    subject: Subject,
    name: str,
    values: Mapping[str, float | None],
    told: Callable[[float], str],
    *,
    errors_below: float = 0.0,
    not_known: str = "not known",
) -> list[Answer]:
    """Who has less of something than most, or, where there is no majority, than the best. More than most is fine.

    Less than `errors_below` of it is an error, else a warning. A node that is not in `values` is not known.
    """
    known = {node: value for node in subject.nodes if (value := values.get(node)) is not None}
    answers = [
        unknown(node, NO_REPORT if subject.reports[node] is None else not_known)
        for node in subject.nodes
        if node not in known
    ]
    if len(subject.nodes) == 1:
        return [*answers, skipped(known, "there is no other node")] if known else answers
    if len(known) == 1:
        return [*answers, unknown(known, "of no other node it is known")]
    if not known:
        return answers
    by_value = groups(known.items())
    usual = by_value.majority if by_value.majority is not None else max(known.values())
    for value, nodes in by_value.of:
        if value >= usual:
            answers.append(ok(*nodes))
        else:
            severity: Severity = "error" if value < errors_below * usual else "warning"
            have = f"{fold(node for node in known if known[node] == usual)} has" if len(known) == 2 else "others have"
            answers.append(
                found(nodes, f"{printable(name)} {told(value)}, where {have} {told(usual)}", severity=severity)
            )
    return answers
