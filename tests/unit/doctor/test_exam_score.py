"""The exam's first half, healthy logs and near misses: what has been reached is held."""

from collections import Counter

from tests.exam.score import (
    NOT_KNOWN,
    OWN_RUNS,
    RIGHT,
    RIGHT_LIKELY,
    WRONG_BUT_SURE,
    graded,
    healthy,
    near_misses,
    questions,
)

OK = (RIGHT, RIGHT_LIKELY)


def test_of_the_first_half_95_percent_are_right_and_none_is_wrong_but_sure():
    grades = Counter()
    for question in questions("a"):
        grade, told = graded(question)
        assert grade != WRONG_BUT_SURE, (question.id, told.cause, told.evidence)
        grades[grade] += 1
    total = sum(grades.values())
    assert total >= 100 and grades[RIGHT] + grades[RIGHT_LIKELY] >= 0.95 * total, grades
    assert grades[NOT_KNOWN] <= 0.05 * total


def test_of_healthy_logs_no_cause_is_named():
    told = dict(healthy())
    assert len(told) >= 40
    assert {name: (one.cause, one.evidence) for name, one in told.items() if one.cause is not None} == {}


def test_of_near_misses_no_cause_is_named_that_they_only_look_like():
    told = list(near_misses())
    assert len(told) >= 40
    assert [(id, one.cause, one.evidence) for id, causes, one in told if one.cause in causes] == []


def test_of_our_own_runs_of_other_trainers_that_were_broken_each_is_right():
    answers = {question.id: (question.cause, *graded(question)) for question in questions(OWN_RUNS)}
    assert len(answers) >= 40
    wrong = {id: (cause, told.cause, told.rank) for id, (cause, grade, told) in answers.items() if grade not in OK}
    assert wrong == {}
