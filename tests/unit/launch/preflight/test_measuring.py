"""What nodes tell of their links comes from the wire: nonsense is left out, or refused by name."""

import pytest

from allranks.cluster.measure.tcp import Measured
from allranks.errors import RefusedError
from allranks.launch.preflight.measuring_links import Links, _better, _disjoint, _pairs, _targets


class Rendezvous:
    class terms:
        token = "t"


def links(num_nodes=3):
    offers = [{"nonce": "n", "at": [{"address": "10.0.0.1", "port": 4000, "library": "gloo"}]}] * num_nodes
    return Links(Rendezvous, [f"node{n}" for n in range(num_nodes)], [], offers)


def test_only_what_can_be_a_measurement_is_taken():
    found = links()
    nonsense = [7, [1], [9, "eth0", 1, 1, ""], [True, None, 1, 1, ""], "x"]
    found._take([[[1, "eth0", 1e-4, 1e9, ""], *nonsense], None, [[0, "eth0", float("nan"), -1, "\x1b[0m"]]])
    (first, second) = [one for one in found.best() if one.interface == "eth0"]
    assert (first.source, first.target, first.latency_seconds, first.bytes_per_second) == ("node0", "node1", 1e-4, 1e9)
    assert (second.source, second.latency_seconds, second.bytes_per_second) == ("node2", None, None)
    assert "\x1b" not in second.failed


def test_the_better_of_two_tries_counts():
    slow, quick, failed = Measured(2e-4, 1e6), Measured(3e-4, 1e9), Measured(failed="timed out")
    assert _better(slow, quick) == _better(quick, slow) == Measured(2e-4, 1e9)
    assert _better(failed, slow) == _better(slow, failed) == slow
    assert _better(failed, failed) == failed


def test_what_is_tried_again_shares_no_node_at_a_time():
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    rounds = _disjoint(pairs)
    assert sorted(pair for one in rounds for pair in one) == pairs
    assert all(len({n for pair in one for n in pair}) == 2 * len(one) for one in rounds)


@pytest.mark.parametrize("said", [None, 7, [[0, 1], [1, 2]], [[0, 9]], [[-1, 0]], [["a", 1]], [[0]]])
def test_rounds_that_cannot_be(said):
    with pytest.raises(RefusedError, match="node 0"):
        _pairs(said, 3)


@pytest.mark.parametrize(
    "offer", [None, {}, {"nonce": "n", "at": [{}]}, {"nonce": "n", "at": [{"address": 1, "port": "x"}]}]
)
def test_an_offer_that_is_none(offer):
    with pytest.raises(RefusedError, match="node 1"):
        _targets(1, offer, "t")
