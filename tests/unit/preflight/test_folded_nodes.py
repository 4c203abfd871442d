import random

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

from allranks.preflight.folding import fold, natural


@pytest.mark.parametrize(
    ("nodes", "folded"),
    [
        (["node8", "node0", "node1", "node2"], "node[0-2,8]"),
        (["a"], "a"),
        ([], ""),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.[1-2]"),
        (["gpu-001", "gpu-002", "login"], "gpu-[001-002],login"),
        (["node 0 (a)", "node 1 (b)", "node 3 (c)"], "node[0-1,3]"),
        (["node 1 (b)"], "node 1 (b)"),
        (["a (pid 7)", "b (pid 8)"], "a (pid 7), b (pid 8)"),
        (["fe80::1", "fe80::2"], "fe80::1, fe80::2"),
        (["n1", "@all", "n2", "x[0-999999999]"], "n[1-2],@all, x[0-999999999]"),
        (["a\x1b[31mb"], "a\ufffd[31mb"),
    ],
)
def test_nodes_are_folded(nodes, folded):
    assert fold(nodes) == folded


def test_a_folded_set_holds_the_same_nodes_in_whatever_order_they_came():
    rng = random.Random(7)
    for _ in range(50):
        nodes = [f"node{number}" for number in rng.sample(range(300), rng.randrange(2, 60))]
        folded = fold(nodes)
        assert set(NodeSet(folded, resolver=RESOLVER_NOGROUP)) == set(nodes)
        assert fold(rng.sample(nodes, len(nodes))) == folded


def test_numbers_sort_as_numbers():
    assert sorted(["node10", "b", "node2", "a"], key=natural) == ["a", "b", "node2", "node10"]
    assert sorted(["10.0.0.10", "10.0.0.9", "node02", "node2"], key=natural) == [
        *("10.0.0.9", "10.0.0.10", "node02", "node2"),
    ]
