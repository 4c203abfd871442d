"""The table of a run as text for a terminal: ranks that are alike share a line, so that 512 of them fit a screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from allranks.findings import Finding, told
from allranks.listing import printable
from allranks.live.state import LiveTable, NodeState, RankState
from allranks.observe.folding import folded

MAX_ROWS = 24
"""Lines of ranks before those that are alike share one: a terminal of 80 x 24 shows little more."""
_NARROWEST = 40
_MAX_FINDINGS = 6
_HELD = {"T": "stopped", "t": "traced", "Z": "dead", "gone": "gone"}
_RUNS = ("R", "S", "D", "T", "t", "I")
# A rank that reads from a disk is in this state for moments; only who stays in it is worth a word.
_DISK_SECONDS = 10.0


def picture(table: LiveTable, *, width: int = 80, max_rows: int = MAX_ROWS, notes: Sequence[str] = ()) -> str:
    """All of a run in lines of at most `width` columns: the whole, its ranks, and what is to be said of some.

    `notes` are lines about the table itself, such as that it is old; they stand below the first lines.
    """
    width = max(_NARROWEST, width)
    lines = folded(_plain("\n".join([*summary(table), *notes])), width).split("\n")
    rows = _rows(table, max_rows)
    if rows:
        lines += ["", *_columns(rows[:max_rows], width)]
        if left := rows[max_rows:]:
            ranks = sum(len(row.seen) for row in left)
            lines.append(f"and {ranks:,} more ranks in {len(left):,} more groups: --json shows all"[:width])
    said = [*(("!", one) for one in table.overdue), *(("*", one) for one in table.stragglers)]
    said += [("-", _warning(node, one)) for node in table.nodes for one in node.warnings]
    if said:
        lines.append("")
        for sign, finding in said[:_MAX_FINDINGS]:
            lines += folded(f"{sign} {_plain(told(finding))}", width).split("\n")
        if len(said) > _MAX_FINDINGS:
            lines.append(f"and {len(said) - _MAX_FINDINGS:,} more")
    return "\n".join(part for line in lines for part in _cut(line.rstrip(), width))


def summary(table: LiveTable) -> list[str]:
    """The whole run in a few lines: which, how far, how fast, and how it ended."""
    ranks = sum(len(node.ranks) for node in table.nodes)
    attempt = f", attempt {table.attempt}" if table.attempt is not None and table.attempt > 1 else ""
    nodes = f"{_counted(len(table.nodes), 'node')}, {_counted(ranks, 'rank')}"
    first = f"run {table.run_id}: {nodes}{attempt}" if table.run_id else f"{nodes}{attempt}"
    return [first, progress(table), *([_ended(table)] if table.ended is not None else [])]


def line(table: LiveTable, notes: Sequence[str] = ()) -> str:
    """The same in one line, for files and pipes: who hangs or is slow stands behind it."""
    said = [*notes, *(told(one).split("\n")[0] for one in (*table.overdue[:2], *table.stragglers[:2]))]
    parts = [progress(table), *([_ended(table)] if table.ended is not None else []), *said]
    return _plain("; ".join(parts)).replace("\n", " ")


def progress(table: LiveTable) -> str:
    """How far the run is and how fast, in one line."""
    parts = []
    if table.step is not None:
        parts.append(f"step {table.step:,}" + (f" of {table.num_steps:,}" if table.num_steps is not None else ""))
    elif phases := sorted({rank.phase for rank in table.ranks if rank.phase}):
        idle = phases == ["done"]  # as of a complete run that was started again
        parts.append("no step was left to do" if idle else "no step is done yet: " + ", ".join(phases[:3]))
    elif ages := [rank.output_age_seconds for rank in table.ranks if rank.output_age_seconds is not None]:
        parts.append(f"no steps are told of; the last output was {_duration(min(ages))} ago")
    else:
        parts.append("no rank has said anything yet")
    if table.loss is not None:
        parts.append(f"loss {table.loss:.4f}")
    if table.tokens_per_second is not None:
        parts.append(f"{table.tokens_per_second:,.0f} tokens/s")
    if table.mfu is not None:
        parts.append(f"MFU {100 * table.mfu:.1f} %")
    if table.eta_seconds is not None:
        parts.append(f"{_duration(table.eta_seconds)} left")
    return "  ".join(parts)


def _ended(table: LiveTable) -> str:
    assert table.ended is not None
    meanings = {0: "done", 3: "refused before the start", 75: "preempted, with a checkpoint saved"}
    code, finding = table.ended.exit_code, table.ended.finding
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(table.t)) if 0 < table.t < 2**34 else "a time not known"
    why = f": {told(finding)}" if finding is not None else f": {meanings[code]}" if code in meanings else ""
    return f"ended by {when} with exit code {code}{why}"


@dataclass(frozen=True)
class _Seen:
    """A rank with its node, as the table shows it."""

    node: NodeState
    rank: RankState
    mark: str
    t: float

    @property
    def seconds(self) -> float | None:
        """It has been where it is."""
        return None if self.rank.since is None else max(0.0, self.t - self.rank.since)

    @property
    def doing(self) -> str:
        rank = self.rank
        if rank.exit_code is not None:
            return "done" if rank.exit_code == 0 else f"exit {rank.exit_code}"
        phase = rank.phase or ("runs" if rank.process_state in _RUNS else "?")
        if held := _HELD.get(rank.process_state or ""):
            return f"{phase}, {held}"
        if rank.process_state == "D" and (self.seconds or 0) >= _DISK_SECONDS:
            return f"{phase}, in D"
        return phase


@dataclass(frozen=True)
class _Row:
    seen: tuple[_Seen, ...]


def _rows(table: LiveTable, max_rows: int) -> list[_Row]:
    """A row a rank; with too many of them a row for those of a node that are alike, then for all that are."""
    marks = _marks(table)
    seen = [
        _Seen(node, rank, marks.get((node.node, rank.rank), " "), table.t)
        for node in table.nodes
        for rank in sorted(node.ranks, key=lambda one: one.rank)
    ]
    if len(seen) <= max_rows:
        return [_Row((one,)) for one in seen]
    usual = table.step

    def kind(one: _Seen) -> tuple[object, ...]:
        step = one.rank.step
        # Nodes tell of their ranks at different moments of a step.
        is_near = step is not None and usual is not None and 0 <= step - usual <= 1
        return one.mark, one.doing, "near" if is_near else step

    rows = _grouped(seen, lambda one: (str(one.node.node), *kind(one)))
    if len(rows) > max_rows:
        rows = _grouped(seen, kind)
    if len(rows) > max_rows:
        rows = _grouped(seen, lambda one: (one.mark, one.doing))
        rows.sort(key=lambda row: row.seen[0].mark == " ")
    return rows


def _grouped(seen: Iterable[_Seen], kind: Callable[[_Seen], object]) -> list[_Row]:
    groups: dict[object, list[_Seen]] = {}
    for one in seen:
        groups.setdefault(kind(one), []).append(one)
    return [_Row(tuple(group)) for group in groups.values()]


def _marks(table: LiveTable) -> dict[tuple[int | str, int], str]:
    """`!` for ranks that hang, `*` for stragglers, by node and rank."""
    marks = {}
    for sign, findings in (("*", table.stragglers), ("!", table.overdue)):
        for finding in findings:
            for node in table.nodes:
                who = finding.who
                if who.node in (None, node.node) and (who.rank is not None or who.node is not None):
                    marks.update({(node.node, one.rank): sign for one in node.ranks if who.rank in (None, one.rank)})
    return marks


def _columns(rows: Sequence[_Row], width: int) -> list[str]:
    """The head and the rows, with as many columns as there is room for; what nobody knows has none."""
    cells = {name: [cell(row, width) for row in rows] for name, (cell, _) in _COLUMNS.items()}
    kept = [name for name in _COLUMNS if any(cells[name])]

    wide = {name: max(len(name), *map(len, cells[name])) for name in kept}

    def taken(gap: int) -> int:
        return 2 + sum(wide[name] for name in kept) + gap * (len(kept) - 1)

    for name in sorted(kept, key=lambda name: _COLUMNS[name][1], reverse=True):
        if taken(gap=1) > width and len(kept) > 1:
            kept.remove(name)
    between = "  " if taken(gap=2) <= width else " "
    left = ("node", "host", "rank", "phase")

    def line(mark: str, texts: dict[str, str]) -> str:
        parts = (texts[name].ljust(wide[name]) if name in left else texts[name].rjust(wide[name]) for name in kept)
        return f"{mark} {between.join(parts)}"

    head = line(" ", {name: name for name in kept})
    return [head] + [
        line(row.seen[0].mark, {name: cells[name][index] for name in kept}) for index, row in enumerate(rows)
    ]


def _nodes(row: _Row, width: int) -> str:
    return _few(_named(dict.fromkeys(one.node.node for one in row.seen)), width // 6)


def _hosts(row: _Row, width: int) -> str:
    hosts = list(dict.fromkeys(_plain(one.node.host) for one in row.seen if one.node.host != str(one.node.node)))
    return _few(", ".join(one for one in hosts[:4] if one) + ("…" if len(hosts) > 4 else ""), width // 6)


def _ranks(row: _Row, width: int) -> str:
    return _few(_named([one.rank.rank for one in row.seen]), width // 6)


def _steps(row: _Row, _: int) -> str:
    return _spread([one.rank.step for one in row.seen], lambda step: f"{step:.0f}")


def _own(pick: Callable[[RankState], float | None], form: Callable[[float], str]) -> Callable[[_Row, int], str]:
    return lambda row, _: _spread([pick(one.rank) for one in row.seen], form)


def _of_nodes(pick: Callable[[NodeState], float | None]) -> Callable[[_Row, int], str]:
    return lambda row, _: _spread([pick(one.node) for one in row.seen], _short_bytes)


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _short_bytes(value: float) -> str:
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor * 0.9995:
            return f"{value / factor:.0f}{unit}" if value >= 9.95 * factor else f"{value / factor:.1f}{unit}"
    return f"{value:.0f}"


def _for(row: _Row, _: int) -> str:
    return _spread([one.seconds for one in row.seen], _duration)


# name -> (its text of a row, its place among those that give way when there is no room: the highest goes first)
_COLUMNS: dict[str, tuple[Callable[[_Row, int], str], int]] = {
    "node": (_nodes, 1),
    "host": (_hosts, 14),
    "rank": (_ranks, 0),
    "phase": (lambda row, _: _plain(row.seen[0].doing)[:20], 2),
    "step": (_steps, 3),
    "for": (_for, 4),
    "s/step": (_own(lambda rank: rank.step_seconds, _seconds), 9),
    "own": (_own(lambda rank: rank.compute_seconds, _seconds), 11),
    "data": (_own(lambda rank: rank.data_seconds, _seconds), 5),
    "wait": (_own(lambda rank: rank.wait_seconds, _seconds), 12),
    "CPU": (_own(lambda rank: rank.cpu_use if rank.phase is None else None, _percent), 8),
    "mem": (_own(lambda rank: rank.memory_bytes, _short_bytes), 6),
    "GPU": (_own(lambda rank: rank.gpu_use, _percent), 7),
    "GPU mem": (_own(lambda rank: rank.gpu_memory_bytes, _short_bytes), 10),
    "in/s": (_of_nodes(lambda node: node.bytes_in), 8),
    "out/s": (_of_nodes(lambda node: node.bytes_out), 8),
    "silent": (
        _own(lambda rank: _if_long(rank.output_age_seconds, rank.events_age_seconds), lambda s: _duration(s)),
        13,
    ),
}


def _if_long(*ages: float | None) -> float | None:
    """Since a rank last wrote anything, where that is worth a column."""
    known = [age for age in ages if age is not None]
    return min(known) if known and min(known) >= 60 else None


def _spread(values: Iterable[float | None], form: Callable[[float], str]) -> str:
    """The lowest and the highest, in one unit where they have one: `1.2-1.4G`."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = form(min(known)), form(max(known))
    if low == high:
        return low
    return f"{low[:-1] if low[-1] == high[-1] and not low[-1].isdigit() else low}-{high}"


def _named(names: Iterable[int | str]) -> str:
    """Numbers as ranges, and names as they are: `0-7,9`."""
    parts: list[str] = []
    first = last = -2
    for name in names:
        if isinstance(name, str):
            parts.append(_plain(name))
            last = -2
        elif name == last + 1:
            last = name
            parts[-1] = f"{first}-{last}"
        else:
            first = last = name
            parts.append(str(name))
    return ",".join(parts)


def _few(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f}s"
    if seconds < 3600:
        return f"{seconds // 60:.0f}m{seconds % 60:02.0f}s".replace("m60s", "m59s")
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f}h{seconds % 3600 // 60:02.0f}m"
    return f"{seconds // 86400:,.0f}d"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _warning(node: NodeState, text: str) -> Finding:
    return Finding("warning", f"node {node.node}: {text}")


def _plain(text: str) -> str:
    """Without what a terminal takes for a command, and without signs whose width it decides."""
    kept = printable(text).replace("\t", " ")
    return "".join(char if char in "\n…" or " " <= char <= "~" else "?" for char in kept)


def _cut(line: str, width: int) -> list[str]:
    """A word that is longer than the terminal is wide is broken where it ends."""
    return [line[at : at + width] for at in range(0, len(line), width)] or [""]
