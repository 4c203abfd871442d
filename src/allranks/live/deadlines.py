"""When ranks that are at the same place for long are taken to hang, and which of them the others wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from allranks.config import RunConfig
from allranks.config.sections.parallel import START_TIMEOUT_SECONDS
from allranks.doctor import causes
from allranks.findings import Finding, Who
from allranks.listing import few
from allranks.live.rank_progress import CHECKPOINT, DONE, EVALUATION, EXPORT, TRAIN
from allranks.live.silence import Silence, silent
from allranks.live.state import LiveTable, NodeState, RankState

# Of what a collective may take: a hang is to be looked at while it hangs, before a time-out ends the ranks.
_PART = 0.8
# Below the time-out of steps in train/time_limit.py, by the same part: 300 s, or 20 steps.
_STEP_SECONDS, _STEPS = 240.0, 16.0
# Nothing tells how long these take: hours of evaluation or of writing are no hang where the user says so.
_EVALUATION_SECONDS = _EXPORT_SECONDS = 3600.0
# Before the steps, in the order in which ranks pass them.
_BEFORE = ("data", "rendezvous", "mesh", "model")
# What follows a step, in its order; the next step begins after that.
_AFTER_STEP = (EVALUATION, CHECKPOINT, TRAIN)
_LIMITED = ("rendezvous", "mesh", "model", EVALUATION, CHECKPOINT, EXPORT)
_GONE = ("gone", "Z")
NONE_BEHIND = ", and by their events none of them is behind the others"
"""What is said where the deadlines alone cannot tell who is waited for."""
_HELD = {"D": "waits in the kernel (state D)", "T": "is stopped (state T)", "t": "is held by a debugger (state t)"}


@dataclass(frozen=True)
class Limits:
    """Seconds that ranks may be at the same place, by phase. `step` is not below `num_medians` times the usual step."""

    rendezvous: float = _PART * START_TIMEOUT_SECONDS
    mesh: float = _PART * START_TIMEOUT_SECONDS
    model: float = _PART * START_TIMEOUT_SECONDS
    first_step: float = _PART * START_TIMEOUT_SECONDS
    step: float = _STEP_SECONDS
    evaluation: float = _EVALUATION_SECONDS
    checkpoint: float = _PART * START_TIMEOUT_SECONDS
    export: float = _EXPORT_SECONDS
    num_medians: float = _STEPS


def limits_of(cfg: RunConfig) -> Limits:
    """What `hang_timeout` says; where it says nothing, what fits `ddp_timeout`."""
    asked = cfg.live.hang_timeout
    known: dict[str, float] = {}
    if (collective := cfg.parallel.ddp_timeout) is not None:
        until_it = _PART * collective
        known = dict.fromkeys(("rendezvous", "mesh", "model", "first_step"), until_it)
        known |= {"step": min(_STEP_SECONDS, until_it), "num_medians": 0.0}
    for each in fields(Limits):
        value = getattr(asked, each.name, None)
        if value is not None:
            known[each.name] = float(value)
    if asked is not None and asked.step is not None:
        known["num_medians"] = 0.0
    return Limits(**known)


def overdue(table: LiveTable, limits: Limits | Silence, now: float) -> list[Finding]:
    """Who hangs at `now`, by the table's clock: nobody, or one finding on the ranks that the others wait for.

    A rank that makes steps is late at none of them, however slow it is.
    """
    if isinstance(limits, Silence):
        return silent(table, limits)
    alive = [_Seen(node, rank, now) for node in table.nodes for rank in node.ranks if _is_alive(rank)]
    late = [one for one in alive if one.key and one.seconds > one.limit(limits)]
    if not late:
        return []
    last, furthest = min(one.place for one in alive), max(one.place for one in alive)
    held = [one for one in alive if one.rank.process_state in _HELD]
    behind = [one for one in alive if one.place == last < furthest]
    missing = held or behind
    shown = missing or alive  # all are at one place then
    has = "has" if len(shown) == 1 else "have"
    what = f"{_named(shown)} {has} been {shown[0].where} for {max(one.seconds for one in shown):.0f} s"
    limit = f"longer than hang_timeout allows ({late[0].key}: {late[0].limit(limits):.0f} s)"
    if any(one in late for one in shown):
        what += f", {limit}"
    if not missing:
        what += NONE_BEHIND if len(alive) > 1 else ""
    elif waiting := [one for one in late if one not in missing]:
        waits = "waits" if len(waiting) == 1 else "wait"
        what += f": {_named(waiting)} {waits} for that, {waiting[0].where} for {waiting[0].seconds:.0f} s"
        what += "" if any(one in late for one in shown) else f", {limit}"
    first = shown[0]
    who = Who(first.node.node, first.rank.rank, first.node.host or None) if missing or len(alive) == 1 else Who()
    remedy = f"if it is only slow, set hang_timeout: {{{late[0].key}: SECONDS}} in the config"
    return [Finding(causes.HANG, what, who=who, remedy=remedy, known_at=table.nodes[0].node)]


@dataclass(frozen=True)
class _Seen:
    """A rank that runs, as the table shows it `now`."""

    node: NodeState
    rank: RankState
    now: float

    @property
    def seconds(self) -> float:
        """It has been where it is."""
        return self.now - self.rank.since if self.rank.since is not None else 0.0

    @property
    def key(self) -> str | None:
        """Of `hang_timeout`, for what it does; None for what takes as long as it takes."""
        if self.rank.phase == TRAIN:
            return "first_step" if self.rank.step is None else "step"
        return self.rank.phase if self.rank.phase in _LIMITED else None

    def limit(self, limits: Limits) -> float:
        assert self.key is not None
        limit: float = getattr(limits, self.key)
        return max(limit, limits.num_medians * (self.rank.median_step_seconds or 0.0)) if self.key == "step" else limit

    @property
    def place(self) -> tuple[int, int, int]:
        """How far it has come, to be compared with others of the same start."""
        phase = self.rank.phase or ""
        if phase in _BEFORE:
            return 0, 0, _BEFORE.index(phase)
        if phase in _AFTER_STEP:
            return 1, self.rank.step or 0, _AFTER_STEP.index(phase)
        return 2, 0, 0

    @property
    def where(self) -> str:
        after = f" after step {self.rank.step}" if self.rank.step is not None else ""
        held = _HELD.get(self.rank.process_state or "")
        return f"in phase {self.rank.phase}{after}" + (f", where it {held}," if held else "")


def _is_alive(rank: RankState) -> bool:
    return rank.exit_code is None and rank.process_state not in _GONE and rank.phase not in (None, DONE)


def _named(seen: Sequence[_Seen]) -> str:
    hosts = [f", {one.node.host}" if one.node.host else "" for one in seen]
    return few([f"rank {one.rank.rank} (node {one.node.node}{host})" for one, host in zip(seen, hosts, strict=True)], 4)
