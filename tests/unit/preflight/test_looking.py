"""Who is named where nodes differ, and who is to blame where some do not reach others."""

import random

import pytest

from allranks.cluster.node_report import NodeReport
from allranks.preflight.check import Subject
from allranks.preflight.connections import to_blame
from allranks.preflight.looking import below, drift
from allranks.preflight.stated import fields_of


def subject(values, starting=""):
    return Subject({node: NodeReport() for node in values}, starting)


def drifting(values, starting=""):
    """(outcome, nodes, text) of each answer but those that are ok."""
    answers = drift(subject(values, starting), "the driver", values)
    return [(one.outcome, one.nodes, one.text) for one in answers if one.outcome != "ok"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"a": "1", "b": "1"}, []),
        ({"a": "1"}, [("skipped", ("a",), "there is no other node")]),
        # No majority: both values, and neither node is to blame more.
        ({"a": "1", "b": "2"}, [("found", ("a", "b"), "the driver is not the same: 1 on a (here); 2 on b")]),
        (
            {"n0": "1", "n1": "2", "n2": "2", "n3": "1"},
            [("found", ("n0", "n1", "n2", "n3"), "the driver is not the same: 1 on n[0,3]; 2 on n[1-2]")],
        ),
        ({"a": "1", "b": "2", "c": "1"}, [("found", ("b",), "the driver is 2, where 2 others have 1")]),
        (
            {"a": "1", "b": "2", "c": "1", "d": "3", "e": "1"},
            [
                ("found", ("b",), "the driver is 2, where 3 others have 1"),
                ("found", ("d",), "the driver is 3, where 3 others have 1"),
            ],
        ),
        # Two alike of four are the most, and no majority.
        (
            {"a": "1", "b": "2", "c": "1", "d": "3"},
            [("found", ("a", "b", "c", "d"), "the driver is not the same: 1 on a,c (here); 2 on b; 3 on d")],
        ),
        ({"a": "1", "b": None, "c": "1"}, [("unknown", ("b",), "not known")]),
        (
            {"a": "1", "b": None},
            [("unknown", ("b",), "not known"), ("unknown", ("a",), "of no other node it is known")],
        ),
        ({"a": None, "b": None}, [("unknown", ("a",), "not known"), ("unknown", ("b",), "not known")]),
    ],
)
def test_the_majority_names_who_deviates_and_without_one_all_values_are_told(values, told):
    assert drifting(values, "a") == told


def test_a_value_from_elsewhere_is_cut_and_does_nothing_to_a_terminal():
    ((_, _, text),) = drifting({"a": "1", "b": "1", "c": "\x1b[2J" + 9000 * "x"})
    assert "\x1b" not in text and len(text) < 300


@pytest.mark.parametrize("seed", range(100))
def test_whatever_nodes_have_those_of_the_majority_are_never_named(seed):
    rng = random.Random(seed)
    nodes = [f"n{number}" for number in range(rng.randrange(2, 12))]
    values = {node: rng.choice("1112") for node in nodes}
    usual = next((value for value in "12" if 2 * list(values.values()).count(value) > len(nodes)), None)
    named = {node for outcome, those, _ in drifting(values) if outcome == "found" for node in those}
    if usual is None:
        assert named == set(nodes)
    else:
        assert named == {node for node in nodes if values[node] != usual}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"a": 10, "b": 10, "c": 1}, ["c"]),
        ({"a": 10, "b": 10, "c": 100}, []),  # one that is faster is no fault
        ({"a": 10, "b": 1}, ["b"]),  # less is worse, with two as well
        ({"a": 1, "b": 1, "c": 10, "d": 10}, ["a", "b"]),
        ({"a": 1, "b": 1}, []),
    ],
)
def test_who_has_less_than_most_is_named(values, named):
    answers = below(subject(values), "it has", values, lambda value: f"{value}", errors_below=0.25)
    assert [node for one in answers if one.outcome == "found" for node in one.nodes] == named
    assert {one.severity for one in answers if one.outcome == "found"} <= {"error"}


def among(count, chosen, inward=True, outward=False):
    others = [(place, chosen) for place in range(count) if place != chosen]
    return {*(others if inward else ()), *((to, at) for at, to in others if outward)}


@pytest.mark.parametrize(
    ("failed", "blamed"),
    [
        (set(), set()),
        (among(5, 3), {3}),
        (among(5, 3, inward=False, outward=True), {3}),
        (among(5, 3, outward=True), {3}),
        (among(9, 3) | among(9, 5), {3, 5}),
        ({(0, 1)}, {0, 1}),  # nothing says which end it is
        ({(0, 1), (1, 0)}, {0, 1}),
        ({(at, to) for at in range(4) for to in range(4) if at != to}, {0, 1, 2, 3}),
        (among(9, 3) | {(0, 1)}, {0, 1, 3}),
    ],
)
def test_nodes_in_most_failures_are_named_until_all_are_explained(failed, blamed):
    assert to_blame(failed) == blamed


@pytest.mark.parametrize("seed", range(50))
def test_every_failed_connection_is_explained_by_a_node_that_is_named(seed):
    rng = random.Random(seed)
    failed = {tuple(rng.sample(range(8), 2)) for _ in range(rng.randrange(1, 30))}
    blamed = to_blame(failed)
    assert all(blamed & set(pair) for pair in failed)
    assert blamed <= {place for pair in failed for place in pair}


def test_what_one_node_could_not_read_is_not_known_and_no_difference():
    known = {"learning_rate": "1", "data: datasets.0: a.jsonl": "sha256 1"}
    nodes = Subject({node: NodeReport() for node in "abc"}, "a", must_match={"a": known, "b": {"learning_rate": "1"}})
    assert fields_of(nodes, "data") == {"a": {"data: datasets.0: a.jsonl": "sha256 1"}, "b": None, "c": None}
    assert fields_of(nodes, "config") == {"a": {"learning_rate": "1"}, "b": {"learning_rate": "1"}, "c": None}
    assert fields_of(nodes, "model") == {"a": {}, "b": {}, "c": None}
