"""Which nodes are measured with which, and when: each node is in one pair at a time, so that no two share a link.

Few nodes are measured in all pairs. More take two rounds of pairs: a node that is slow with two partners, each of which
is quick with somebody else, is the slow one. A slow link between two nodes that were never paired stays unseen;
`share_seen` says how many links were measured.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

Pair = tuple[int, int]
"""The lower node first."""

ALL_PAIRS_UP_TO = 8
"""Nodes; 7 rounds of pairs for 8 nodes."""
ALL_PAIRS_OF_OTHERS = 3
"""The same for what the ranks do not use, or what takes seconds a pair."""


def first_rounds(num_nodes: int, all_pairs_up_to: int = ALL_PAIRS_UP_TO) -> list[list[Pair]]:
    """The rounds that do not depend on what is found: all pairs of few nodes, else one round of neighbours."""
    if num_nodes > all_pairs_up_to:
        return [[(node, node + 1) for node in range(0, num_nodes - 1, 2)]]
    # The circle method: one stays, the others move on by one place each round; with an odd number one is free.
    circle = list(range(num_nodes + num_nodes % 2))
    rounds = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        met = zip(circle[:half], reversed(circle[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in met if max(a, b) < num_nodes])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return [one for one in rounds if one]


def second_rounds(num_nodes: int, slow: Collection[Pair], all_pairs_up_to: int = ALL_PAIRS_UP_TO) -> list[list[Pair]]:
    """Of more nodes than are measured in all pairs: everybody with somebody else than before.

    Nodes of pairs that were slow, and the one that was left over, meet nodes that were quick. Who is left over now, as
    with an odd number or among many slow ones, meets somebody in a round of its own.
    """
    if num_nodes <= all_pairs_up_to:
        return []
    (before,) = first_rounds(num_nodes, all_pairs_up_to)
    partner = dict(before) | {b: a for a, b in before}
    suspects = [node for pair in sorted(slow) for node in pair]
    suspects += [node for node in range(num_nodes) if node not in partner]
    trusted = [node for node in range(num_nodes) if node not in suspects]
    pairs = list(zip(suspects, trusted, strict=False))
    left = [*suspects[len(pairs) :], *trusted[len(pairs) :]]
    # Who is left has met its neighbour, so half of them meet the other half.
    half = len(left) // 2
    pairs += [(a, b) for a, b in zip(left[:half], left[half : 2 * half], strict=True) if partner.get(a) != b]
    met = {node for pair in pairs for node in pair}
    once = [node for node in range(num_nodes) if node not in partner or node not in met]
    extra = _among({*before, *((min(pair), max(pair)) for pair in pairs)}, once, [*trusted, *suspects])
    return [[(min(a, b), max(a, b)) for a, b in one] for one in (pairs, extra) if one]


def _among(known: Collection[Pair], once: Sequence[int], others: Sequence[int]) -> list[Pair]:
    """A round for nodes that have met one other or none: with each other, else with others that they do not know."""
    pairs: list[Pair] = []
    taken: set[int] = set()
    for node in once:
        if node in taken:
            continue
        candidates = (one for one in (*once, *others) if one != node and one not in taken)
        other = next((one for one in candidates if (min(node, one), max(node, one)) not in known), None)
        if other is not None:
            pairs.append((node, other))
            taken |= {node, other}
    return pairs


def share_seen(num_nodes: int, measured: Collection[Pair]) -> float:
    """The part of all links between two nodes that `measured` has."""
    return len(set(measured)) / (num_nodes * (num_nodes - 1) / 2)


def to_measure(rounds: Sequence[Sequence[Pair]], node: int) -> list[tuple[int, bool] | None]:
    """What `node` does in each slot: (its partner, whether it sends), or None; a round has one for each direction."""
    slots: list[tuple[int, bool] | None] = []
    for pairs in rounds:
        mine = next((pair for pair in pairs if node in pair), None)
        other = None if mine is None else mine[1] if mine[0] == node else mine[0]
        for first_sends in (True, False):
            slots.append(None if mine is None or other is None else (other, (mine[0] == node) is first_sends))
    return slots
