"""What came of the checks, for a terminal: the worst first, each finding with its id, and what was not checked."""

from __future__ import annotations

from allranks.launch.preflight.together import Judged
from allranks.preflight.folding import fold
from allranks.preflight.judgement import State
from allranks.preflight.table import CALLED, finding, table
from allranks.rendezvous.hidden import HIDDEN_NOTE

_SHOWN = 12


def summary(judged: Judged) -> str:
    """In one line how much was checked, and how it ended."""
    judgement = judged.judgement
    counted = {state: sum(one.state == state for one in judgement.reported) for state in CALLED}
    found = [f"{number} {CALLED[state]}(s)" for state, number in counted.items() if number]
    num_unknown = sum("unknown" in one.nodes for one in judgement.checked)
    found += [f"{num_unknown} not known"] if num_unknown else []
    came = ", ".join(found) or "all well"
    return f"{len(judgement.checked)} checks on {fold(judgement.nodes)} in {judged.seconds:.1f} s: {came}"


def findings(judged: Judged, *states: State) -> list[str]:
    """Each of these states; what several nodes have in common is one."""
    shown = ["\n".join(finding(one)) for one in judged.judgement.reported if one.state in states]
    more = [f"and {len(shown) - _SHOWN:,} more; preflight.json has all"] if len(shown) > _SHOWN else []
    marks = [HIDDEN_NOTE] if judged.is_hidden and shown else []
    return [*shown[:_SHOWN], *more, *marks]


def in_full(judged: Judged) -> str:
    """For `allranks check`."""
    lines = [f"{'preflight:':<12}{summary(judged)}", *table(judged.judgement)]
    lines += [HIDDEN_NOTE] if judged.is_hidden and judged.judgement.reported else []
    ending = "would be refused" if judged.is_refused else "can start"
    return "\n".join([*lines, f"{'result:':<12}this run {ending} on these nodes; nothing was started"])


def of_start(judged: Judged) -> str:
    """For a run that starts, or is refused: what the user must know."""
    if judged.is_refused:
        return "\n".join(["the nodes are not as this run needs them:", *findings(judged, "failed")])
    return "\n".join([f"{'preflight:':<12}{summary(judged)}", *findings(judged, "warned", "accepted")])
