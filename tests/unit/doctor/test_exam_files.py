"""The exam's questions are well formed, are told apart by their ids, and stay in their own half."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

EXAM = Path(__file__).parents[2] / "exam"
CAUSES = EXAM / "causes.txt"
FILES = sorted(EXAM.glob("half-?/*.toml"))
NEAR_MISSES = sorted(EXAM.glob("near-misses/*.toml"))
ALLOWED = {"id", "source", "cause", "also", "rank", "graded_by", "log"}
THREAD = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/\d+")


def questions(file: Path) -> list[dict]:
    return tomllib.loads(file.read_text())["question"]


def known_causes() -> set[str]:
    lines = CAUSES.read_text().splitlines()
    return {line.split("|")[0].strip() for line in lines if line and not line.startswith("#")} | {"unknown"}


def half_of(source: str) -> str:
    """The half of a thread: by its address, so that nobody chose which half a thread is in."""
    return "ab"[int(hashlib.sha256(source.encode()).hexdigest(), 16) % 2]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_questions_are_complete(file):
    for asked in questions(file):
        assert set(asked) <= ALLOWED, asked["id"]
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", asked["id"]), asked["id"]
        assert asked["source"].startswith("https://"), asked["id"]
        assert len(asked["graded_by"]) > 10, asked["id"]
        assert 1 <= len(asked["log"].strip().splitlines()) <= 40, asked["id"]
        unknown = {asked["cause"], *asked.get("also", [])} - known_causes()
        assert not unknown, f"{asked['id']}: no such cause: {unknown}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_thread_is_in_its_own_half_only(file):
    half = file.parent.name.removeprefix("half-")
    for asked in questions(file):
        if half in "ab" and THREAD.fullmatch(asked["source"]):
            assert half_of(asked["source"]) == half, asked["id"]


def test_a_later_set_asks_of_no_thread_that_an_earlier_one_asked_of():
    """Sets c to h were collected and graded before they were first asked, and i before its batches were, of other
    threads."""
    asked_in: dict[str, set[str]] = {}
    for file in FILES:
        for asked in questions(file):
            if THREAD.fullmatch(asked["source"]):
                asked_in.setdefault(asked["source"].lower(), set()).add(file.parent.name)
    assert {thread: sets for thread, sets in asked_in.items() if len(sets) > 1} == {}


def test_ids_are_unique_over_all_sets():
    ids = [asked["id"] for file in FILES for asked in questions(file)]
    assert len(ids) == len(set(ids)), sorted({one for one in ids if ids.count(one) > 1})


@pytest.mark.parametrize("file", NEAR_MISSES, ids=lambda file: file.stem)
def test_near_misses_name_the_causes_they_are_not(file):
    for near_miss in tomllib.loads(file.read_text())["near_miss"]:
        assert set(near_miss) <= {"id", "not_causes", "cause", "log"}, near_miss["id"]
        named = {*near_miss["not_causes"], near_miss.get("cause", "unknown")}
        assert not named - known_causes(), f"{near_miss['id']}: no such cause: {named - known_causes()}"
        assert near_miss["not_causes"] and near_miss.get("cause") not in near_miss["not_causes"], near_miss["id"]
        assert 3 <= len(near_miss["log"].strip().splitlines()) <= 40, near_miss["id"]


def test_there_are_forty_near_misses_of_different_ids():
    ids = [one["id"] for file in NEAR_MISSES for one in tomllib.loads(file.read_text())["near_miss"]]
    assert len(ids) == len(set(ids)) >= 40


@pytest.mark.parametrize("file", sorted(EXAM.glob("healthy/*.log")), ids=lambda file: file.stem)
def test_a_healthy_log_says_where_it_is_from(file):
    first, *lines = file.read_text().splitlines()
    assert first.startswith("# source: ")
    assert 13 <= len(lines) <= 80
