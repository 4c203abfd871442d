"""The rules that come with allranks: as data, and tried on the logs that come with each."""

import re

import pytest

from allranks.cli.commands import COMMANDS
from allranks.doctor.literals import literals, problem_of
from allranks.doctor.rule_cases import problems_of_rules
from allranks.doctor.ruleset import all_rules, rule_files

GOOD = """
[[rule]]
id = "shm-full"
kind = "cause"
title = "/dev/shm is full"
patterns = ['''posix_fallocate failed\\s?: No space left''']
certainty = "sure"
meaning = "There was no room in it."
remedy = "--shm-size=16g"
not_proven = "who filled it"
look_at = "df -h /dev/shm"
restart = "hopeless"
sources = ["https://example.org/525"]
cases = ['''NCCL WARN Call to posix_fallocate failed : No space left on device''']
near_misses = ['''there is room enough in /dev/shm''']
"""


def test_all_rules_are_well_formed_and_name_what_their_logs_show():
    assert rule_files() and problems_of_rules() == []


def test_commands_of_allranks_that_rules_name_are_there():
    texts = [text for rule in all_rules() for text in (rule.meaning, rule.remedy, rule.not_proven, rule.look_at)]
    named = {name for text in texts for name in re.findall(r"`allranks ([a-z][a-z-]*)", text)}
    assert named and named <= set(COMMANDS), sorted(named - set(COMMANDS))


@pytest.mark.parametrize(
    "was, becomes, told",
    [
        ('kind = "cause"', 'kind = "cuase"', "kind is 'cuase': cause, retried, symptom, consequence are known"),
        ('restart = "hopeless"', "", "restart is missing"),
        ('restart = "hopeless"', 'restrat = "hopeless"', "restrat: no key of a rule"),
        ('sources = ["https://example.org/525"]', "sources = []", "sources is missing"),
        ("'''there is room enough in /dev/shm'''", "", "near_misses is missing"),
        ('id = "shm-full"', 'id = "shm_full"', "the id is words"),
        (
            "posix_fallocate failed\\s?: No space left",
            "(?:fallocate|failed+)+: No space left",
            "a repeat within a repeat",
        ),
        ("posix_fallocate failed\\s?: No space left", "posix.*f.*l.*space left", "3 unbounded repeats"),
        ("posix_fallocate failed\\s?: No space left", "(?:full|room)", "has no literal of 5 characters"),
        ("posix_fallocate failed\\s?: No space left", "posix_fallocate (", "is no regular expression"),
        ("posix_fallocate failed\\s?: No space left", "ftruncate failed: No space left", "case 1"),
        ("posix_fallocate failed\\s?: No space left", "posix_fallocate failed|room enough", "near miss 1"),
        ("[[rule]]", 'explains = ["no-such"]\n[[rule]]', "holds [[rule]] tables"),
        ('certainty = "sure"', 'explains = ["no-such"]', "explains: no rule has the id no-such"),
        ("--shm-size=16g", "--shm-size={size}", "{size}: no pattern has a group of that name"),
        ("[[rule]]", "[[rules]]", "holds [[rule]] tables and nothing else"),
        ("[[rule]]", "[[rule", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_rule_is_told(tmp_path, was, becomes, told):
    file = tmp_path / "nccl.toml"
    file.write_text(GOOD)
    assert problems_of_rules([file]) == []
    assert was in GOOD
    file.write_text(GOOD.replace(was, becomes, 1))
    problems = problems_of_rules([file])
    assert any(told in problem and str(file) in problem for problem in problems), problems


def test_an_id_is_there_once(tmp_path):
    one, other = tmp_path / "a.toml", tmp_path / "b.toml"
    one.write_text(GOOD)
    other.write_text(GOOD + GOOD)
    assert problems_of_rules([one, other]) == [
        f"{other}: rule shm-full: the id is taken by a rule of {one}",
        f"{other}: rule shm-full: the id is taken by a rule of {one}",
        f"{other}: rule shm-full: the id is there twice",
    ]


@pytest.mark.parametrize(
    "pattern, needles",
    [
        (r"(?:Error|Exit) code (?P<code>\d+)", {"error code ", "exit code "}),
        (r"[Cc]onnection (?:closed|reset) by peer", {"connection closed by peer", "connection reset by peer"}),
        (r"(?i)Out of Memory", {"out of memory"}),
        (r"rank \d+ of \d+ ranks has already checked in", {" ranks has already checked in"}),
        (r"(?:abc)?defgh", {"abcdefgh", "defgh"}),
        (r"abcde(?:x|\d+)fghijkl", {"fghijkl"}),
        (r"abcd|.*", set()),
        (r"größe zu klein", {"e zu klein"}),
    ],
)
def test_a_pattern_tells_what_every_line_that_it_matches_contains(pattern, needles):
    assert literals(pattern) == needles


def test_one_repeat_after_another_is_fast_enough():
    assert problem_of(r"size mismatch for (?P<name>\S+): .*shape") == ""
