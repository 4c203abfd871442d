"""A diagnosis on a terminal."""

from allranks.doctor.diagnosis import Diagnosis
from allranks.doctor.told import lines_of
from allranks.findings import Evidence


def test_texts_of_several_lines_are_told_line_by_line_below_their_head():
    told = Diagnosis(
        "hang",
        "rank 1 never came\nto a barrier",
        "sure",
        meaning="one\n\ntwo",
        remedy="start it again\nits log: a.log\nall logs: b",
        evidence=(Evidence("never came", "a.log", 3),),
        notes=("a note",),
    )
    assert lines_of(told) == [
        "cause: rank 1 never came",
        "  to a barrier",
        "  a.log:3 | never came",
        "meaning: one",
        "  two",
        "do: start it again",
        "  its log: a.log",
        "  all logs: b",
        "a restart may pass (fingerprint )",
        "note: a note",
    ]


def test_a_text_that_begins_with_a_line_end_has_its_head_all_the_same():
    assert lines_of(Diagnosis("hang", "\nx", "sure"))[0] == "cause: "
