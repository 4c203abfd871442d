"""Who is measured with whom: by simulation of clusters with one bad node, or one bad link."""

import random

import pytest

from allranks.cluster.measure.schedule import (
    ALL_PAIRS_OF_OTHERS,
    ALL_PAIRS_UP_TO,
    first_rounds,
    second_rounds,
    share_seen,
    to_measure,
)


def rounds_of(num_nodes, is_slow):
    first = first_rounds(num_nodes)
    slow = [pair for pairs in first for pair in pairs if is_slow(pair)]
    return [*first, *second_rounds(num_nodes, slow)]


@pytest.mark.parametrize("num_nodes", range(2, ALL_PAIRS_UP_TO + 1))
def test_few_nodes_are_measured_in_all_pairs(num_nodes):
    rounds = rounds_of(num_nodes, lambda pair: False)
    pairs = [pair for one in rounds for pair in one]
    assert sorted(pairs) == [(a, b) for a in range(num_nodes) for b in range(a + 1, num_nodes)]
    assert len(rounds) == num_nodes - 1 + num_nodes % 2 and share_seen(num_nodes, pairs) == 1


@pytest.mark.parametrize("num_nodes", [2, 3, 8, 9, 10, 11, 16, 33, 64, 255, 1024])
def test_a_node_is_in_one_pair_at_a_time_and_nobody_meets_the_same_twice(num_nodes):
    for bad in range(0, num_nodes, max(1, num_nodes // 16)):
        rounds = rounds_of(num_nodes, lambda pair, bad=bad: bad in pair)
        for pairs in rounds:
            nodes = [node for pair in pairs for node in pair]
            assert len(set(nodes)) == len(nodes) and all(a < b < num_nodes for a, b in pairs)
        met = [pair for pairs in rounds for pair in pairs]
        assert len(set(met)) == len(met)
        assert {node for pair in met for node in pair} == set(range(num_nodes))


@pytest.mark.parametrize("num_nodes", [9, 10, 15, 16, 64, 101, 256])
def test_a_single_slow_node_is_found_for_certain(num_nodes):
    """It alone has only slow partners; each of those is quick with somebody else."""
    for bad in range(num_nodes):
        met = [pair for pairs in rounds_of(num_nodes, lambda pair, bad=bad: bad in pair) for pair in pairs]
        only_slow = {n for n in range(num_nodes) if all(bad in pair for pair in met if n in pair)}
        assert only_slow == {bad}
        assert sum(bad in pair for pair in met) >= 2


@pytest.mark.parametrize("num_nodes", range(ALL_PAIRS_OF_OTHERS + 1, 40))
def test_whatever_is_slow_every_node_is_measured_and_no_pair_twice(num_nodes):
    dice = random.Random(num_nodes)
    for share in (0, 0.1, 0.3, 0.5, 0.8, 1) * 3:
        first = first_rounds(num_nodes, ALL_PAIRS_OF_OTHERS)
        slow = [pair for pairs in first for pair in pairs if dice.random() < share]
        rounds = [*first, *second_rounds(num_nodes, slow, ALL_PAIRS_OF_OTHERS)]
        met = [pair for pairs in rounds for pair in pairs]
        assert len(set(met)) == len(met) and {node for pair in met for node in pair} == set(range(num_nodes))
        assert all(len({node for pair in pairs for node in pair}) == 2 * len(pairs) for pairs in rounds)
        assert len(rounds) <= 3


def test_what_is_seen_of_single_links():
    met = {pair for pairs in rounds_of(64, lambda pair: False) for pair in pairs}
    assert share_seen(64, met) == 64 / (64 * 63 / 2)


def test_in_each_slot_one_of_a_pair_sends_and_then_the_other():
    rounds = first_rounds(3)
    slots = [to_measure(rounds, node) for node in range(3)]
    assert len(slots[0]) == 2 * len(rounds)
    for number in range(len(slots[0])):
        senders = [
            (node, slots[node][number][0]) for node in range(3) if slots[node][number] and slots[node][number][1]
        ]
        ((sender, target),) = senders
        assert slots[target][number] == (sender, False)
    directions = {(node, slot[0]) for node in range(3) for slot in slots[node] if slot and slot[1]}
    assert directions == {(a, b) for a in range(3) for b in range(3) if a != b}
