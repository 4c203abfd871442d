import random

import pytest

from allranks.cluster.pairs import Unreached
from allranks.doctor.pairs import Place
from allranks.observe.folding import folded
from allranks.preflight.check import Check, Pairs, Subject, found, ok, skipped, unknown
from allranks.preflight.judge import judge
from allranks.preflight.judgement import Judgement
from allranks.preflight.matrix import Matrix, matrix
from allranks.preflight.table import table
from tests.unit.preflight.test_judge import faulty


def pairs(num_nodes, failed, tried=None):
    places = [Place(f"node{number}", (), "1 to 2") for number in range(num_nodes)]
    return Pairs(places, [(at, Unreached(to, "10.0.0.1", 1, "connect", "timed out")) for at, to in failed], tried)


def picture(one):
    return list(one.lines(80))[1:]


def test_a_node_that_nobody_reaches_is_a_column_and_the_others_fold():
    assert picture(matrix(pairs(9, [(at, 7) for at in range(9) if at != 7]))) == [
        " node[0-6,8] .#",
        "       node7 .",
    ]


def test_one_direction_is_told_from_the_other():
    assert picture(matrix(pairs(3, [(0, 2)]))) == [" node0  .#", " node1 . .", " node2 .."]


def test_where_nobody_reaches_anybody_all_are_one():
    everyone = [(at, to) for at in range(64) for to in range(64) if at != to]
    assert picture(matrix(pairs(64, everyone))) == [" node[0-63] #"]


def test_all_reach_all_is_no_picture():
    assert matrix(pairs(4, [])) is None


def test_what_was_not_tried_is_told():
    assert picture(matrix(pairs(3, [(0, 1)], tried={(0, 1), (1, 0), (2, 1), (1, 2)}))) == [
        *(" node0  #?", " node1 . .", " node2 ?."),
    ]


@pytest.mark.parametrize("num_nodes", [2, 64, 200, 1024])
def test_any_picture_fits_the_width(num_nodes):
    rng = random.Random(num_nodes)
    failed = {tuple(rng.sample(range(num_nodes), 2)) for _ in range(6 * num_nodes)}
    made = matrix(pairs(num_nodes, failed))
    lines = list(made.lines(80))
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 80
    assert Matrix.from_message(made.to_message()) == made


@pytest.mark.parametrize(
    "message", [None, 7, {}, {"groups": [["a"]], "cells": ["\x1b"]}, {"groups": [["a"], 7], "cells": ["..", ".."]}]
)
def test_what_is_no_picture_is_none(message):
    assert Matrix.from_message(message) is None


def test_the_worst_comes_first_and_nodes_fold():
    def look(subject):
        yield ok(*subject.nodes[:7])
        yield found("node7", "it is broken", evidence=["as this shows"])
        yield found("node8", "it is slow", severity="warning")
        yield unknown("node9", "it gave no report")

    def look_elsewhere(subject):
        yield skipped(subject.nodes, "this run uses the CPU")

    checks = [
        Check("made.up", "w", "y", "mend it", "error", "f", look),
        Check("made.too", "w", "y", "r", "error", "f", look_elsewhere),
        Check("made.three", "w", "y", "r", "error", "f", look_elsewhere),
    ]
    lines = table(judge(Subject({f"node{number}": None for number in range(10)}), checks=checks))
    assert lines == [
        "error: node7: it is broken [made.up]",
        "  | as this shows",
        "  mend it",
        "warning: node8: it is slow [made.up]",
        "  mend it",
        "not known:  made.up on node9: it gave no report",
        "skipped:    made (too, three): this run uses the CPU",
        "nodes:      node7: failed",
        "            node8: warned",
        "            node9: ok as far as is known",
        "            node[0-6]: ok",
    ]


@pytest.mark.parametrize("seed", range(30))
def test_the_table_fits_a_terminal_and_crosses_to_other_nodes(seed):
    judged = judge(faulty(seed)[0].subject())
    lines = table(judged)
    words = " ".join(lines).split()
    assert max(map(len, folded("\n".join(lines), 80).splitlines())) <= max(80, *map(len, words))
    assert "\x1b" not in "".join(lines)
    assert table(Judgement.from_message(judged.to_message())) == lines
