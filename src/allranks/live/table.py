"""The table of a run, made of what each node says of its ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from allranks.findings import Finding
from allranks.live.state import LiveEnd, LiveTable, NodeState, RankState


def table_of_nodes(
    run_id: str,
    t: float,
    nodes: Iterable[NodeState],
    *,
    stragglers: Sequence[Finding] = (),
    overdue: Sequence[Finding] = (),
    ended: LiveEnd | None = None,
) -> LiveTable:
    """What all nodes say together; the numbers of the whole are those of the last step that all ranks have done."""
    of_nodes = _joined(nodes)
    table = LiveTable(run_id=run_id, t=t, nodes=of_nodes, stragglers=tuple(stragglers), overdue=tuple(overdue))
    ranks = table.ranks
    steps = [rank.step for rank in ranks if rank.step is not None]
    num_steps = next((rank.num_steps for rank in ranks if rank.num_steps is not None), None)
    step = min(steps, default=None)
    leading = next((rank for rank in ranks if rank.step is not None and rank.step == step), RankState(rank=0))
    usual = next((rank.median_step_seconds for rank in ranks if rank.median_step_seconds is not None), None)
    eta = None
    if step is not None and num_steps is not None and usual is not None:
        eta = max(0, num_steps - step) * usual
    return replace(
        table,
        step=step,
        num_steps=num_steps,
        tokens_per_second=leading.tokens_per_second,
        mfu=leading.mfu,
        eta_seconds=eta if ended is None else None,
        loss=leading.loss,
        attempt=max((rank.attempt for rank in ranks if rank.attempt is not None), default=None),
        ended=ended,
    )


def _joined(states: Iterable[NodeState]) -> tuple[NodeState, ...]:
    """By node; what several processes say of the ranks of one node, each of its own, as one."""
    nodes: dict[int | str, NodeState] = {}
    for state in states:
        before = nodes.get(state.node)
        nodes[state.node] = state if before is None else replace(state, ranks=(*before.ranks, *state.ranks))
    return tuple(nodes[node] for node in sorted(nodes, key=lambda name: (isinstance(name, str), name)))


def at_our_clock(node: NodeState, now: float) -> NodeState:
    """A node's state that has just come, with its times by our clock instead of its own: clocks of nodes differ."""
    shift = now - node.t
    ranks = (rank if rank.since is None else replace(rank, since=rank.since + shift) for rank in node.ranks)
    return replace(node, t=now, ranks=tuple(ranks))
