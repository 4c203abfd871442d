"""A judgement as text for a terminal of any width: the worst first, nodes folded."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from allranks.findings import Finding
from allranks.listing import few, printable
from allranks.preflight.folding import fold
from allranks.preflight.judgement import STATES, Judgement, Reported, State

_WIDTH = 80
_SHOWN_CHECKS = 6
_COLORS: dict[State, str] = {"failed": "31;1", "warned": "33", "accepted": "36", "unknown": "35", "ok": "32"}
_WORDS: dict[State, str] = {"failed": "error", "warned": "warning", "noted": "note", "accepted": "accepted"}
_OF_NODES: dict[State, str] = {"unknown": "ok as far as is known"}


def told(judgement: Judgement, *, width: int = _WIDTH, color: bool = False) -> str:
    """All that was found, and what could not be seen; with `color`, in a terminal's. No line is wider than `width`."""
    lines = [*_heading(judgement), ""]
    for one in judgement.reported:
        lines += _finding(one)
    if judgement.matrix is not None:
        lines += ["", *judgement.matrix.lines(width)]
    lines += _not_seen(judgement)
    lines += _nodes(judgement)
    shown = [part for line in lines for part in _wrapped(line, width)]
    return "\n".join(_colored(line) if color else line for line in shown)


def _heading(judgement: Judgement) -> Iterator[str]:
    num_found = {state: sum(one.state == state for one in judgement.reported) for state in _WORDS}
    counts = [
        f"{number} {_WORDS[state]}{'s' if number != 1 and state != 'accepted' else ''}"
        for state, number in num_found.items()
        if number
    ]
    nodes = f"{len(judgement.nodes)} node{'s' if len(judgement.nodes) != 1 else ''}"
    yield f"preflight: {len(judgement.checked)} checks on {nodes}: {', '.join(counts) or 'all is well'}"


def _finding(one: Reported) -> Iterator[str]:
    finding: Finding = one.finding
    yield f"{_WORDS.get(one.state, one.state)} {finding.code}: {printable(finding.what)}"
    yield from (f"  | {printable(evidence.text)}" for evidence in finding.evidence)
    if one.state in ("failed", "warned"):
        yield from (f"  {line}" for line in printable(finding.remedy).splitlines())


def _not_seen(judgement: Judgement) -> Iterator[str]:
    """Unknown is not ok, and skipped is no failure: both are told, checks with the same reason as one."""
    for state in ("unknown", "skipped"):
        checks: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for one in judgement.checked:
            if nodes := one.nodes.get(state):
                reason = "; ".join(text for of, text in one.reasons if of == state)
                checks.setdefault((reason, nodes), []).append(one.id)
        for (reason, nodes), ids in checks.items():
            where = "" if nodes == judgement.nodes else f"{fold(nodes)}: "
            yield f"{state} {where}{few(ids, _SHOWN_CHECKS)}: {printable(reason)}"


def _nodes(judgement: Judgement) -> Iterator[str]:
    worst: dict[str, State] = dict.fromkeys(judgement.nodes, "ok")
    for one in judgement.checked:
        for state in ("unknown", "warned", "failed"):
            for node in one.nodes.get(state, ()):
                if STATES.index(state) < STATES.index(worst[node]):
                    worst[node] = state
    for state in STATES:
        if some := [node for node, its in worst.items() if its == state]:
            yield f"{fold(some)}: {_OF_NODES.get(state, state)}"


def _wrapped(line: str, width: int) -> Iterable[str]:
    if len(line) <= width or line.startswith(" :"):
        return [line]
    indent = " " * (len(line) - len(line.lstrip(" |")) or 2)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=True, break_on_hyphens=False)


def _colored(line: str) -> str:
    for state, color in _COLORS.items():
        word = _WORDS.get(state, state)
        if line.startswith(f"{word} "):
            return f"\033[{color}m{word}\033[0m{line[len(word) :]}"
        if not line.startswith(" ") and line.endswith(f": {state}"):
            return f"{line[: -len(state)]}\033[{color}m{state}\033[0m"
    return line
