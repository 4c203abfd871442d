"""A judgement as lines: findings, the worst first, who reaches whom, what was not seen, and each node's state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from allranks.findings import printed
from allranks.listing import few, printable
from allranks.preflight.folding import fold
from allranks.preflight.judgement import STATES, Judgement, Reported, State

WIDTH = 80
"""Columns that the picture of connections takes at most; other lines are folded by whoever prints them."""
CALLED: dict[State, str] = {"failed": "error", "warned": "warning", "noted": "note", "accepted": "accepted"}
_OF_NODES: dict[State, str] = {"unknown": "ok as far as is known"}
_LABELS: tuple[tuple[State, str], ...] = (("unknown", "not known:"), ("skipped", "skipped:"))
_LABEL = 12
_SHOWN_CHECKS, _SHOWN_REASONS = 8, 3


def table(judgement: Judgement) -> list[str]:
    """All of it; nodes folded, what several have in common told once."""
    lines = [line for one in judgement.reported for line in finding(one)]
    if judgement.matrix is not None:
        lines += judgement.matrix.lines(WIDTH)
    if judgement.rates is not None:
        lines += judgement.rates.lines(WIDTH, of_rates=True)
    for name, picture in judgement.transports.items():
        lines += [f"over {name}:", *picture.lines(WIDTH, of_rates=True)]
    return [*lines, *_not_seen(judgement), *_nodes(judgement)]


def finding(one: Reported) -> list[str]:
    """What it counts as, what it is and its id in one line; then what shows it, and the remedy where it matters."""
    first, *rest = printed(one.finding).splitlines()
    what = first.removeprefix(f"{one.finding.severity}: ")
    if one.state not in ("failed", "warned"):
        rest = rest[: len(one.finding.evidence)]
    return [f"{CALLED.get(one.state, one.state)}: {what} [{one.finding.code}]", *rest]


def _not_seen(judgement: Judgement) -> Iterator[str]:
    """Not known is not ok, and skipped is no failure: both are told, checks with the same reason as one."""
    for state, label in _LABELS:
        by_reason: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for one in judgement.checked:
            if nodes := one.nodes.get(state):
                reasons = (text for of, text in one.reasons if of == state)
                by_reason.setdefault((few(reasons, _SHOWN_REASONS, between="; "), nodes), []).append(one.id)
        for (reason, nodes), ids in by_reason.items():
            on = "" if len(nodes) == len(judgement.nodes) else f" on {fold(nodes)}"
            yield f"{label:<{_LABEL}}{few(_by_family(ids), _SHOWN_CHECKS)}{on}: {printable(reason)}"


def _by_family(ids: Iterable[str]) -> Iterator[str]:
    """`clock.spread, limits (memlock, shm)`."""
    families: dict[str, list[str]] = {}
    for one in ids:
        family, _, name = one.partition(".")
        families.setdefault(family, []).append(name)
    for family, names in families.items():
        yield f"{family} ({', '.join(names)})" if len(names) > 1 else f"{family}.{names[0]}"


def _nodes(judgement: Judgement) -> Iterator[str]:
    worst: dict[str, State] = dict.fromkeys(judgement.nodes, "ok")
    for one in judgement.checked:
        for state in ("unknown", "warned", "failed"):
            for node in one.nodes.get(state, ()):
                if STATES.index(state) < STATES.index(worst[node]):
                    worst[node] = state
    label = "nodes:"
    for state in STATES:
        if some := [node for node, its in worst.items() if its == state]:
            yield f"{label:<{_LABEL}}{fold(some)}: {_OF_NODES.get(state, state)}"
            label = ""
