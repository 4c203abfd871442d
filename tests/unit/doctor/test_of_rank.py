"""What nodes tell each other of their ranks says as much as the ranks' own events, and no more than it may cost."""

import json
from dataclasses import replace

import pytest

from allranks.doctor.collective_abort import with_other_places
from allranks.doctor.of_rank import LastEntered, OfRank, from_message, of_ranks, to_message
from allranks.findings import Who
from allranks.observe.events import ErrorEvent, StepEvent
from tests.unit.doctor.test_collective_abort import LOST, aborted, lost, steps

USUAL = LastEntered("all_reduce of scalar float", 3, "all_reduce of scalar float", 3)
ODD = LastEntered("all_reduce of 9 float", 0, "all_reduce of scalar float", 3)


def heard(node, events, entered):
    return from_message(json.loads(json.dumps(to_message(of_ranks(node, events, entered)))))


def test_what_is_heard_names_the_same_rank_as_its_events_do():
    here, there = steps(r0=3), [*steps(r1=4), replace(lost(1), host=None)]
    told = heard(1, there, {1: ODD})
    assert [(one.rank, one.node, one.step, one.entered) for one in told] == [(1, 1, 4, ODD)]
    of_events = with_other_places(aborted(), [*here, *there], num_ranks=2)
    assert with_other_places(aborted(), [*here, *told[0].events()], num_ranks=2) == of_events
    assert of_events.who == Who(1, 1)


def test_an_error_of_its_own_is_not_told_as_that_of_a_rank_that_lost_another():
    own = ErrorEvent(rank=1, message="ValueError: bad batch", traceback=LOST)
    assert of_ranks(1, [own, StepEvent(rank=1, step=2)], {}) == (OfRank(1, 1, 2),)


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        [None, 3, [], {"rank": "1", "node": 0}, {"rank": True, "node": 0}, {"rank": 2**70, "node": 0}, {"rank": 1}],
        [{"rank": -1, "node": 1}],
    ],
)
def test_what_cannot_be_read_is_passed_over(message):
    assert from_message(message) == ()


def test_what_a_stranger_says_is_cut_and_moves_no_cursor():
    hostile = {"rank": 1, "node": 1, "step": "x", "message": "\x1b[2J" + "m" * 10**6, "frame": ["f"] * 10**5}
    entered = {"entered": "e\x07" * 10**5, "usual": 7, "times": 0, "usual_times": 3}
    (told,) = from_message([{**hostile, "entered": entered}])
    assert told.step is None and told.entered is None
    assert "\x1b" not in told.message and max(len(told.message), len(told.frame)) < 1000
    assert len(from_message([{"rank": rank, "node": 0} for rank in range(10**5)])) < 1000


def test_where_only_some_ranks_are_known_the_aborted_one_is_not_blamed_for_what_others_may_have_done():
    usual = with_other_places(aborted(), [lost(1)], entered=lambda: {1: USUAL}, num_ranks=3)
    assert usual.who == Who(0, 0) and usual.what == aborted().what
    known = with_other_places(aborted(), [lost(1)], entered=lambda: {1: USUAL}, num_ranks=2)
    assert "rank 0 (node 0) did not enter all_reduce of scalar float" in known.what
    odd = with_other_places(aborted(), [lost(2)], entered=lambda: {2: ODD}, num_ranks=3)
    assert odd.who.rank == 2 and "rank 2 (node 2, node2) entered all_reduce of 9 float" in odd.what
    same_place = [lost(1), lost(2)]
    assert "elsewhere than the others" in with_other_places(aborted(), same_place, num_ranks=3).what
    assert with_other_places(aborted(), same_place, num_ranks=5).what == aborted().what
