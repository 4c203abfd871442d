"""Links between nodes that all ranks wait for, by what each node says that its ranks sent, and how fast that went.

No rank is slow by itself then: all of them wait, and nobody works longer than the others (see stragglers.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from allranks.findings import Finding, Who
from allranks.listing import few, si_bytes
from allranks.live.state import LinkState, LiveTable, NodeState

SLOW_LINK = "slow-link"
# Of the time, that ranks wait, and that a link is busy with what they sent, before it is worth a line.
_WAITING, _BUSY = 0.3, 0.3
# Where only its rate speaks against a link: small messages are under way for long, too.
_BUSY_ALONE = 0.6
# Of what other links of the run carry, or of what this one did: cables and switches of one cluster are alike.
_PART = 0.5
# No network that is made for training is below 100 Mbit/s: a link that came up at the wrong speed is.
_LEAST = 12.5e6
# Healthy networks lose less than one of a thousand; fewer are chance.
_LOST, _FEWEST_RETRANSMITS = 0.03, 10
_FEWEST_BYTES = 2**18
_TICK_SECONDS = 0.01  # the kernel counts in ticks of 1 to 10 ms: what was faster took none
_STEPS_APART, _SECONDS_APART, _AGREEING = 5, 3.0, 2
# Where packets are lost, a step of seconds may take minutes: that shows without any step.
_SECONDS_WITHOUT_STEPS = 10.0
_NAMED = 4

_Ends = tuple[int | str, int | str]  # the nodes that send and that take


@dataclass(frozen=True)
class _Use:
    """What a link has carried in a window of `seconds`."""

    seconds: float
    num_bytes: int
    carrying_seconds: float
    num_segments: int
    num_retransmits: int

    @property
    def rate(self) -> float | None:
        """Bytes a second; None where too little was sent to tell."""
        if self.num_bytes < _FEWEST_BYTES:
            return None
        return self.num_bytes / max(self.carrying_seconds, _TICK_SECONDS)

    @property
    def busy(self) -> float:
        return self.carrying_seconds / self.seconds

    @property
    def lost(self) -> float:
        """Of the segments, what had to be sent again; 0 for so few that it may be chance."""
        few = self.num_retransmits < _FEWEST_RETRANSMITS
        return 0.0 if few else min(1.0, self.num_retransmits / max(1, self.num_segments))


@dataclass(frozen=True)
class _Window:
    """What all links have carried from one table to another, and how many steps were done meanwhile."""

    uses: Mapping[_Ends, _Use]
    seconds: float
    num_steps: int
    waiting: float

    @property
    def who_waits(self) -> str:
        if not self.num_steps:
            return f"no step was done in {self.seconds:.0f} s"
        return f"all ranks wait, for {100 * self.waiting:.0f} % of a step of {self.seconds / self.num_steps:.3g} s"


@dataclass
class SlowLinks:
    """Reads the table each second; `found` are those that have been so over several windows, of steps or of time."""

    found: tuple[Finding, ...] = ()
    _by_steps: _Agreeing = field(default_factory=lambda: _Agreeing(_are_enough))
    _by_time: _Agreeing = field(default_factory=lambda: _Agreeing(_is_long))
    _usual: dict[_Ends, float] = field(default_factory=dict)  # the best rate of a window

    def read(self, table: LiveTable) -> list[Finding]:
        """Take in a table; what is new."""
        of_steps = self._by_steps.read(table, self._why)
        of_time = self._by_time.read(table, lambda ends, uses: _loss(uses[ends]))
        if not of_steps and not of_time:
            return []
        if of_steps:
            for ends, use in of_steps.uses.items():
                if use.rate is not None and ends not in self._by_steps.slow:
                    self._usual[ends] = max(use.rate, self._usual.get(ends, 0.0))
        known = bool(self.found)
        told = next((one for one in (self._by_steps, self._by_time) if one.told), None)
        self.found = (_finding(told.told, told.window, table),) if told is not None and told.window else ()
        return [] if known else list(self.found)

    def _why(self, ends: _Ends, uses: Mapping[_Ends, _Use]) -> str:
        """What shows that a link is slow; "" for one that is not."""
        use = uses[ends]
        if lost := _loss(use):
            return lost
        if use.rate is None or use.busy < _BUSY:
            return ""
        others = [one.rate for other, one in uses.items() if set(other) != set(ends) and one.rate is not None]
        if len(others) > 1 and use.rate < _PART * statistics.median(others):
            return f"the median of the others carries {_rate(statistics.median(others))}"
        usual = self._usual.get(ends)
        if usual is not None and use.rate < _PART * usual:
            return f"it has carried {_rate(usual)}"
        return "no network for training is so slow" if use.rate < _LEAST and use.busy > _BUSY_ALONE else ""


@dataclass
class _Agreeing:
    """Windows one after the other, each until it `is_due`, and which links were slow in several running."""

    is_due: Callable[[int, float], bool]  # after so many steps, and seconds
    window: _Window | None = None
    slow: dict[_Ends, str] = field(default_factory=dict)  # in the newest window, and why
    told: dict[_Ends, str] = field(default_factory=dict)  # in as many as it takes
    _seen: dict[_Ends, int] = field(default_factory=dict)
    _before: LiveTable | None = None

    def read(self, table: LiveTable, why: Callable[[_Ends, Mapping[_Ends, _Use]], str]) -> _Window | None:
        """Take in a table; the window that it ends, if it does."""
        before = self._before
        if before is None or table.step is None or before.step is None or table.step < before.step:
            self._before = table
            return None
        num_steps, seconds = table.step - before.step, table.t - before.t
        if not self.is_due(num_steps, seconds):
            return None
        uses = _uses(before, table)
        if not num_steps and not any(use.lost for use in uses.values()):
            return None
        window = _Window(uses, seconds, num_steps, _waiting(table, seconds / max(1, num_steps)))
        self._before, self.window = table, window
        waits = window.waiting >= _WAITING
        self.slow = {ends: reason for ends in uses if waits and (reason := why(ends, uses))}
        self._seen = {ends: self._seen.get(ends, 0) + 1 for ends in self.slow}
        # What is sent again comes after twice as long each time: of a step that does not end there may be no more.
        agreeing = _AGREEING if num_steps else 1
        self.told = {ends: reason for ends, reason in self.slow.items() if self._seen[ends] >= agreeing}
        return window


def _are_enough(num_steps: int, seconds: float) -> bool:
    return num_steps >= _STEPS_APART and seconds >= _SECONDS_APART


def _is_long(num_steps: int, seconds: float) -> bool:
    return seconds >= _SECONDS_WITHOUT_STEPS


def _loss(use: _Use) -> str:
    return f"{100 * use.lost:.0f} % of what is sent has to be sent again" if use.lost > _LOST else ""


def _waiting(table: LiveTable, step_seconds: float) -> float:
    """The part of their steps in which the ranks wait: of the one that waits least. Where their own work is not known,
    as on GPUs, all of it may be waiting."""
    works = [rank.median_compute_seconds for rank in table.ranks if rank.median_compute_seconds is not None]
    return max(0.0, 1.0 - max(works, default=0.0) / step_seconds)


def _uses(before: LiveTable, after: LiveTable) -> dict[_Ends, _Use]:
    """What each link between two nodes has carried between two tables."""
    node_of = {link.local: node.node for node in after.nodes for link in node.links}
    old = {(node.node, link.local, link.peer): link for node in before.nodes for link in node.links}
    times = {node.node: node.t for node in before.nodes}
    found: dict[_Ends, list[_Use]] = {}
    for node in after.nodes:
        seconds = node.t - times.get(node.node, node.t)
        for link in node.links if seconds > 0 else ():
            to = node_of.get(link.peer, node.node)  # what is sent to others than nodes holds no step up
            was = old.get((node.node, link.local, link.peer), LinkState())
            if to != node.node and link.acked_bytes >= was.acked_bytes:
                found.setdefault((node.node, to), []).append(_use(seconds, was, link))
    return {ends: max(uses, key=lambda use: use.carrying_seconds) for ends, uses in found.items()}


def _use(seconds: float, was: LinkState, link: LinkState) -> _Use:
    return _Use(
        seconds,
        link.acked_bytes - was.acked_bytes,
        link.carrying_seconds - was.carrying_seconds,
        link.num_segments - was.num_segments,
        link.num_retransmits - was.num_retransmits,
    )


def _finding(told: Mapping[_Ends, str], window: _Window, table: LiveTable) -> Finding:
    uses = window.uses
    pairs = list(dict.fromkeys(tuple(sorted(ends, key=str)) for ends in told))
    shared = set(pairs[0]).intersection(*pairs[1:]) if len(pairs) > 1 else set()
    nodes = {node.node: node for node in table.nodes}
    worst = min(told, key=lambda ends: (-uses[ends].lost, uses[ends].rate or 0.0))
    if shared:
        hub = min(shared, key=str)
        others = [_named(next(end for end in pair if end != hub), nodes) for pair in pairs]
        whose = f"the link of {_named(hub, nodes)} is slow, to {few(others, _NAMED)}"
    else:
        both = [f"between {_named(one, nodes)} and {_named(other, nodes)}" for one, other in pairs]
        whose = f"the link {both[0]} is slow" if len(both) == 1 else f"the links {few(both, _NAMED)} are slow"
    use = uses[worst]
    how = f"it carries {_rate(use.rate)}, and " if use.rate is not None else ""
    return Finding(
        SLOW_LINK,
        f"{whose}: {how}{told[worst]}; {window.who_waits}",
        severity="warning",
        who=Who(),
        remedy="no rank is slow by itself: look at the cables, at the speed that the interfaces came up with (ethtool) "
        "and the switch between these nodes, and at what else goes over them; `allranks check` measures all links",
    )


def _named(node: int | str, nodes: Mapping[int | str, NodeState]) -> str:
    host = nodes[node].host
    return f"node {node} ({host})" if host and host != node else f"node {node}"


def _rate(num_bytes: float | None) -> str:
    return f"{si_bytes(num_bytes or 0.0)}/s"
