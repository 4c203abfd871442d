"""What came of the checks, for a terminal: the worst first, each finding with its id, and what was not checked."""

from __future__ import annotations

from allranks.findings import printed
from allranks.launch.preflight.together import Judged
from allranks.listing import few
from allranks.preflight.folding import fold
from allranks.preflight.judgement import Judgement, Reported, State
from allranks.rendezvous.hidden import HIDDEN_NOTE

_SHOWN = 12
_CALLED: dict[State, str] = {"failed": "error", "warned": "warning", "noted": "note", "accepted": "accepted"}


def summary(judged: Judged) -> str:
    """In one line how much was checked, and how it ended."""
    judgement = judged.judgement
    counted = {state: sum(one.state == state for one in judgement.reported) for state in _CALLED}
    found = [f"{number} {_CALLED[state]}(s)" for state, number in counted.items() if number]
    unknown = _checks(judgement, "unknown")
    found += [f"{len(unknown)} not known"] if unknown else []
    came = ", ".join(found) or "all well"
    return f"{len(judgement.checked)} checks on {fold(judgement.nodes)} in {judged.seconds:.1f} s: {came}"


def findings(judged: Judged, *states: State) -> list[str]:
    """Each of these states; what several nodes have in common is one."""
    shown = [_told(one) for one in judged.judgement.reported if one.state in states]
    more = [f"and {len(shown) - _SHOWN:,} more; preflight.json has all"] if len(shown) > _SHOWN else []
    marks = [HIDDEN_NOTE] if judged.is_hidden and shown else []
    return [*shown[:_SHOWN], *more, *marks]


def in_full(judged: Judged) -> str:
    """For `allranks check`."""
    lines = [f"{'preflight:':<12}{summary(judged)}", *findings(judged, *_CALLED)]
    for state in ("unknown", "skipped"):
        if checks := _checks(judged.judgement, state):
            lines.append(f"{'not known:' if state == 'unknown' else 'skipped:':<12}{few(checks, 40)}")
    ending = "would be refused" if judged.is_refused else "can start"
    return "\n".join([*lines, f"{'result:':<12}this run {ending} on these nodes; nothing was started"])


def of_start(judged: Judged) -> str:
    """For a run that starts, or is refused: what the user must know."""
    if judged.is_refused:
        return "\n".join(["the nodes are not as this run needs them:", *findings(judged, "failed")])
    return "\n".join([f"{'preflight:':<12}{summary(judged)}", *findings(judged, "warned", "accepted")])


def _told(one: Reported) -> str:
    first, *rest = printed(one.finding).splitlines()
    told = first.removeprefix(f"{one.finding.severity}: ")
    return "\n".join([f"{_CALLED[one.state]}: {told} [{one.finding.code}]", *rest])


def _checks(judgement: Judgement, state: State) -> list[str]:
    """The checks that are in this state on all or some nodes, with the reason where there is one only."""
    found = []
    for one in judgement.checked:
        if nodes := one.nodes.get(state):
            on = "" if len(nodes) == len(judgement.nodes) else f" on {fold(nodes)}"
            reasons = [text for of, text in one.reasons if of == state]
            why = f" ({reasons[0]})" if len(reasons) == 1 and state == "unknown" else ""
            found.append(f"{one.id}{on}{why}")
    return found
