"""All checks over one subject: what each node's state is, and what follows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from allranks.findings import Evidence, Finding, Who
from allranks.preflight.check import Answer, Check, Subject, skipped, unknown
from allranks.preflight.folding import fold
from allranks.preflight.judgement import STATES, Checked, Judgement, Reported, State
from allranks.preflight.matrix import matrix, rate_matrices

_STATE_OF: Mapping[str, State] = {"error": "failed", "warning": "warned", "note": "noted"}
_RANK = {state: number for number, state in enumerate(STATES)}
_SEVERITY_OF = {"failed": "error", "warned": "warning"}


@dataclass(frozen=True)
class Policy:
    """What the config says of checks, each by its id or by its family's name (`catalogue.named` looks them up).

    `strict`: their warnings fail, too. `ignore`: what they find is accepted. `skip`: they are not made.
    """

    strict: Collection[str] = ()
    ignore: Collection[str] = ()
    skip: Collection[str] = ()
    quick: bool = True
    """Without the checks that take long."""


def judge(subject: Subject, policy: Policy | None = None, checks: Sequence[Check] | None = None) -> Judgement:
    """Make all checks, or those given, on what is known of the nodes. Raises nothing, whatever the nodes reported."""
    if checks is None:
        from allranks.preflight.catalogue import CHECKS  # not above: the config's section reads names there

        checks = CHECKS
    policy = policy or Policy()
    checked, reported = [], []
    for check in checks:
        answers = _answers(check, subject, policy)
        states = [(answer, _state(check, answer, policy)) for answer in answers]
        checked.append(
            Checked(
                check.id,
                _worst(subject.nodes, states),
                tuple(sorted({(state, answer.text) for answer, state in states if state in ("unknown", "skipped")})),
            )
        )
        reported += [
            Reported(_finding(check, answer, state), answer.nodes, state)
            for answer, state in states
            if answer.outcome == "found"
        ]
    reported.sort(key=lambda one: _RANK[one.state])
    rates = rate_matrices(subject)
    return Judgement(
        subject.nodes,
        subject.starting,
        tuple(checked),
        tuple(reported),
        matrix(subject.pairs) if subject.pairs else None,
        rates.pop("", None),
        rates,
    )


def _answers(check: Check, subject: Subject, policy: Policy) -> list[Answer]:
    if {check.id, check.family} & set(policy.skip):
        return [skipped(subject.nodes, "the config says so (preflight.skip)")]
    if policy.quick and not check.quick:
        return [skipped(subject.nodes, "it takes longer than a quick check may")]
    try:
        answers = list(check.look(subject))
    except Exception as error:
        # A report comes from elsewhere: what nobody thought of in it must not keep the other checks from being made.
        return [unknown(subject.nodes, f"the check ended with {type(error).__name__}: {error}")]
    said = {node for answer in answers for node in answer.nodes}
    if left := [node for node in subject.nodes if node not in said]:
        answers.append(unknown(left, "nothing was said of it"))
    return _merged(answers)


def _merged(answers: Iterable[Answer]) -> list[Answer]:
    """Nodes of which the same is said, in one answer."""
    alike: dict[tuple[object, ...], list[Answer]] = {}
    for one in answers:
        if one.nodes:
            alike.setdefault((one.outcome, one.text, one.evidence, one.remedy, one.severity), []).append(one)
    return [
        same[0]
        if len(same) == 1
        else replace(same[0], nodes=tuple(dict.fromkeys(n for each in same for n in each.nodes)))
        for same in alike.values()
    ]


def _state(check: Check, answer: Answer, policy: Policy) -> State:
    if answer.outcome != "found":
        return answer.outcome
    names, severity = {check.id, check.family}, answer.severity or check.severity
    if names & set(policy.ignore):
        return "accepted"
    return "failed" if severity == "warning" and names & set(policy.strict) else _STATE_OF[severity]


def _worst(nodes: Sequence[str], states: Iterable[tuple[Answer, State]]) -> dict[State, tuple[str, ...]]:
    """Each node in the worst of its states; the worst states first."""
    of: dict[str, State] = {}
    for answer, state in states:
        for node in answer.nodes:
            if node not in of or _RANK[state] < _RANK[of[node]]:
                of[node] = state
    by_state: dict[State, list[str]] = {state: [] for state in STATES}
    for node in nodes:
        by_state[of[node]].append(node)
    return {state: tuple(nodes) for state, nodes in by_state.items() if nodes}


def _finding(check: Check, answer: Answer, state: State) -> Finding:
    return Finding(
        code=check.id,
        what=f"{fold(answer.nodes)}: {answer.text}",
        severity=_SEVERITY_OF.get(state, "note"),
        who=Who(node=answer.nodes[0]) if len(answer.nodes) == 1 else Who(),
        evidence=tuple(Evidence(line) for line in answer.evidence),
        remedy=answer.remedy or check.remedy,
    )
