"""Judging many nodes; `python -m benchmarks.preflight` measures it up to 1,024."""

from benchmarks.preflight import measure


def test_of_many_nodes_the_one_that_nobody_reaches_is_all_that_is_found():
    assert measure(48).found == ("reach.pairs",)
