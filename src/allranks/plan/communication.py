"""Bytes that collectives move between nodes, from what was issued and the algorithms that carry it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from allranks.listing import si_bytes

Backend = str
"""`nccl` or `gloo`."""

WHOLE_MESSAGE = {
    "all_reduce": "input",
    "broadcast": "input",
    "reduce": "input",
    "reduce_scatter": "input",
    "all_to_all": "input",
    "gather": "input",
    "all_gather": "output",
    "scatter": "output",
    "barrier": "input",
}
"""Collective -> the side of it whose size `Collective.num_bytes` is."""


@dataclass(frozen=True)
class Collective:
    """One call of a collective, as one of its ranks issued it.

    `group` is the group's name for people, `ranks` its members in their order; `num_bytes` the whole message: what is
    reduced or broadcast, what is gathered from all, what is scattered over all.
    """

    op: str
    backend: Backend
    group: str
    ranks: Sequence[int]
    dtype: str
    num_bytes: int


@dataclass(frozen=True)
class Kind:
    """Equal calls together. `between_nodes_bytes`: what all ranks of the run sent to other nodes in them."""

    op: str
    backend: Backend
    group: str
    dtype: str
    num_ranks: int
    calls: int
    num_bytes: int
    between_nodes_bytes: float = 0.0


def sent_to_other_nodes(collective: Collective, rank: int, nodes: Sequence[int]) -> float:
    """Bytes that `rank` sends to ranks of other nodes in a collective; `nodes` is the node of each rank of the run.

    With n ranks on k nodes and a message of M bytes, a ring carries 2 (n-1)/n M over each of its edges in an all-reduce
    and (n-1)/n M in an all-gather or reduce-scatter (Thakur et al. 2005, "Optimization of Collective Communication
    Operations in MPICH"). NCCL's rings enter and leave each node once, whatever the order of ranks, so k edges cross;
    its trees carry about as much (2 (k-1) M together instead of 2 k (n-1)/n M). gloo's ring goes by rank.

    Where it depends on a root, which is not known here, its part is spread over all ranks: sums over ranks are right.
    """
    places = [nodes[member] for member in collective.ranks]
    num_ranks, num_nodes = len(places), len(set(places))
    if num_nodes < 2:
        return 0.0
    here = nodes[rank]
    message = float(collective.num_bytes)
    elsewhere = sum(place != here for place in places)
    ring = (num_ranks - 1) / num_ranks * message
    if collective.backend == "gloo":
        position = collective.ranks.index(rank)
        edges = float(places[(position + 1) % num_ranks] != here)
    else:
        edges = 1 / places.count(here)
    match collective.op:
        case "all_reduce":
            return 2 * ring * edges
        case "all_gather" | "reduce_scatter":
            return ring * edges
        case "broadcast":
            return message * (num_nodes - 1) / num_ranks
        case "reduce":
            # gloo reduces over the ring first, then every rank sends its part to the root.
            if collective.backend == "gloo":
                return ring * edges + message / num_ranks * elsewhere / num_ranks
            return message * (num_nodes - 1) / num_ranks
        case "all_to_all":
            return message * elsewhere / num_ranks
        case "gather" | "scatter":
            return message * elsewhere / num_ranks
    return 0.0


def tally(collectives: Iterable[Collective], rank: int, nodes: Sequence[int]) -> list[Kind]:
    """Equal calls of one rank put together, the largest first, each with what this rank sends to other nodes."""
    calls = Counter(collectives)
    kinds: dict[tuple[str, ...], Kind] = {}
    for collective, count in calls.items():
        key = (collective.op, collective.backend, collective.group, collective.dtype, str(len(collective.ranks)))
        before = kinds.get(key)
        kinds[key] = Kind(
            *(collective.op, collective.backend, collective.group, collective.dtype, len(collective.ranks)),
            calls=count + (before.calls if before else 0),
            num_bytes=count * collective.num_bytes + (before.num_bytes if before else 0),
            between_nodes_bytes=count * sent_to_other_nodes(collective, rank, nodes)
            + (before.between_nodes_bytes if before else 0.0),
        )
    return sorted(kinds.values(), key=lambda kind: -kind.num_bytes)


def over_all_ranks(tallies: Sequence[Sequence[Kind]], nodes: Sequence[int]) -> tuple[list[Kind], list[float]]:
    """Rank 0's kinds, with the bytes that all ranks together sent to other nodes in them, and those of each node.

    `tallies` holds every rank's. A kind that rank 0 took no part in comes with another rank's numbers.
    """
    sent = [0.0] * (max(nodes) + 1)
    together: dict[tuple, Kind] = {}
    for rank, kinds in enumerate(tallies):
        for kind in kinds:
            sent[nodes[rank]] += kind.between_nodes_bytes
            key = (kind.op, kind.backend, kind.group, kind.dtype, kind.num_ranks)
            first = together.get(key)
            if first is None:
                together[key] = kind
            else:
                total = first.between_nodes_bytes + kind.between_nodes_bytes
                together[key] = Kind(*key, calls=first.calls, num_bytes=first.num_bytes, between_nodes_bytes=total)
    return sorted(together.values(), key=lambda kind: (-kind.between_nodes_bytes, -kind.num_bytes)), sent


def sentence(kinds: Sequence[Kind], sent: Sequence[float]) -> str:
    """Such as "each of 2 nodes sends 2.4 MB a step to the others: all_reduce of 2.4 MB bfloat16 in 3 calls"."""
    if not any(sent):
        return f"nothing a step between {len(sent)} nodes"
    low, high = size(min(sent)), size(max(sent))
    amount = high if low == high else f"{low} to {high}"
    # Less than a hundredth of it all (the loss, the gradient's norm) is not worth a word.
    crossing = [kind for kind in kinds if kind.between_nodes_bytes >= 0.01 * sum(sent)]
    parts = [f"{kind.op} of {size(kind.num_bytes)} {kind.dtype} in {_calls(kind)}" for kind in crossing]
    return f"each of {len(sent)} nodes sends {amount} a step to the others: {', '.join(parts)}"


def size(num_bytes: float) -> str:
    """In SI units: "1.20 GB"."""
    return si_bytes(num_bytes, 2, "B")


def _calls(kind: Kind) -> str:
    return f"{kind.calls} call{'s' if kind.calls > 1 else ''}"
