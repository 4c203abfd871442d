"""Bytes between nodes, against sums done by hand."""

import pytest

from allranks.plan.communication import Collective, over_all_ranks, sent_to_other_nodes, sentence, tally

MB = 1_000_000


def total(op: str, nodes: tuple[int, ...], *, backend: str = "nccl", num_bytes: int = 12 * MB) -> float:
    """What all ranks together send to other nodes in one collective over all of them."""
    collective = Collective(op, backend, "g", tuple(range(len(nodes))), "float32", num_bytes)
    return sum(sent_to_other_nodes(collective, rank, nodes) for rank in range(len(nodes)))


@pytest.mark.parametrize(
    ("op", "nodes", "expected"),
    [
        # A ring over 4 ranks on 2 nodes: 6 hops of a quarter (3 MB) cross each of its 2 edges between nodes.
        ("all_reduce", (0, 0, 1, 1), 2 * 6 * 3 * MB),
        ("all_gather", (0, 0, 1, 1), 2 * 3 * 3 * MB),
        ("reduce_scatter", (0, 0, 1, 1), 2 * 3 * 3 * MB),
        ("all_reduce", (0, 1), 2 * 2 * 6 * MB),
        ("all_reduce", (0, 1, 2), 3 * 4 * 4 * MB),
        # The message reaches every other node once.
        ("broadcast", (0, 0, 1, 1, 2, 2), 2 * 12 * MB),
        # Each of 4 ranks has a quarter for each rank, and 2 of those are elsewhere.
        ("all_to_all", (0, 0, 1, 1), 4 * 2 * 3 * MB),
        ("all_reduce", (0, 0, 0), 0),
        ("barrier", (0, 1), 0),
    ],
)
def test_bytes_that_cross(op, nodes, expected):
    assert total(op, nodes) == pytest.approx(expected)


def test_ranks_dealt_in_turn_cost_gloo_more_and_nccl_not():
    in_order, in_turn = (0, 0, 1, 1), (0, 1, 0, 1)
    assert total("all_reduce", in_turn) == total("all_reduce", in_order)
    assert total("all_reduce", in_order, backend="gloo") == total("all_reduce", in_order)
    assert total("all_reduce", in_turn, backend="gloo") == 2 * total("all_reduce", in_order)


def test_ranks_are_put_together_by_kind_and_node():
    # Replicas over nodes and shards inside them, as HSDP: only the replicas' all-reduce crosses.
    nodes = (0, 0, 1, 1)
    tallies = []
    for rank in range(4):
        shard = tuple(r for r in range(4) if nodes[r] == nodes[rank])
        replicas = (rank % 2, rank % 2 + 2)
        calls = [Collective("all_gather", "nccl", "shard", shard, "bfloat16", 8 * MB)] * 3
        calls += [Collective("all_reduce", "nccl", "replicate", replicas, "float32", 2 * MB)] * 2
        tallies.append(tally(calls, rank, nodes))
    kinds, sent = over_all_ranks(tallies, nodes)
    assert [(kind.group, kind.calls, kind.num_bytes) for kind in kinds] == [
        ("replicate", 2, 4 * MB),
        ("shard", 3, 24 * MB),
    ]
    # Each of a node's two ranks sends its 2 x 2 MB.
    assert sent == [8 * MB, 8 * MB]
    assert [kind.between_nodes_bytes for kind in kinds] == [16 * MB, 0]
    told = sentence(kinds, sent)
    assert told == "each of 2 nodes sends 8.00 MB a step to the others: all_reduce of 4.00 MB float32 in 2 calls"
