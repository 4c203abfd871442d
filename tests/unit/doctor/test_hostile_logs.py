"""Logs that nobody would think of: nothing crashes, no control characters are shown, pieces make no difference."""

import re
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allranks.doctor.diagnose import diagnose
from allranks.doctor.read_logs import diagnosis_of_text, our_index
from allranks.doctor.reading.prefixes import without_prefixes
from allranks.doctor.reading.scanner import Scanner
from allranks.doctor.reading.sources import Source
from allranks.doctor.ruleset import all_rules
from allranks.doctor.told import lines_of

PATTERNS = [pattern for rule in all_rules() for pattern in (*rule.patterns, *rule.context, *rule.contradicted_by)]
# What logs are made of, and what breaks readers of them.
PARTS = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\x1b[31m",
    b"\x1b]0;title\x07",
    b"\x1b[2J\x1b[1;1H",
    b"\x00",
    b"\xff\xfe",
    "\u202e\u2028\x85\x9b".encode(),
    b"[rank3]: ",
    b"[rank99999999999]: ",
    b"12: ",
    b"2026-11-29 10:00:00,123 - ",
    b"2026-99-99 99:99:99,999 - ",
    b"[E1399 99:99:99.9 x.cpp:1] ",
    b"(RayTrainWorker pid=1, ip=10.0.0.1) ",
    b"Traceback (most recent call last):\n",
    b'  File "/home/u/t.py", line 3, in main\n',
    b"ValueError: bad\n",
    b"\nDuring handling of the above exception, another exception occurred:\n\n",
    b"Root Cause (first observed failure):\n",
    b"  rank      : 7 (local_rank: 7)\n  exitcode  : -9 (pid: 1)\n",
    b"{'loss': 1.0}\n",
    b"{'loss': nan}\n",
    b"Init COMPLETE\n",
    b"x" * 5000,
    b"(((((((((((((((((",
    b"OSError: [Errno 28] No space left on device: '",
    b"CUDA out of memory. Tried to allocate 2.00 GiB",
    *(case.encode()[:300] for rule in all_rules() for case in rule.cases[:1]),
]
LOGS = st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=40)), max_size=30).map(b"".join)
# The same examples each time, and no clock: a machine with other work on it is slow.
FUZZ = settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))


@FUZZ
@given(LOGS)
def test_whatever_the_log_holds_the_answer_can_be_printed(log):
    told = diagnosis_of_text(log)
    for line in lines_of(told):
        assert line.isprintable() and len(line) < 10_000
    assert (told.cause is None) == (told.certainty == "unknown")


@FUZZ
@given(LOGS, st.lists(st.integers(0, 8000), max_size=6))
def test_pieces_make_no_difference(log, cuts):
    whole = Scanner(our_index(), Source(None, "log"))
    whole.feed(log, at_end=True)
    scanner = Scanner(our_index(), Source(None, "log"))
    places = sorted({min(cut, len(log)) for cut in cuts} | {0, len(log)})
    for start, end in pairwise(places):
        scanner.feed(log[start:end])
    scanner.feed(b"", at_end=True)
    assert diagnose([scanner.read]) == diagnose([whole.read])


@FUZZ
@given(st.sampled_from(PATTERNS).flatmap(lambda one: st.tuples(st.just(one), st.from_regex(one.text))))
def test_every_line_that_a_pattern_matches_has_one_of_its_needles(found):
    pattern, line = found
    folded = line.encode().lower()
    # `(?i)` matches a few letters beyond ASCII (the Kelvin sign for k) that bytes do not fold.
    if line.isascii():
        assert any(needle.encode() in folded for needle in pattern.needles)


@FUZZ
@given(st.text(max_size=300))
def test_prefixes_are_a_beginning_and_the_rest_is_whole(text):
    told = without_prefixes(text)
    assert text.endswith(told.text)
    assert told.rank is None or 0 <= told.rank < 10**6


@FUZZ
@given(st.binary(max_size=2000), st.integers(0, 40), st.sampled_from(PATTERNS))
def test_needles_are_found_wherever_they_stand(noise, before, pattern):
    needle = sorted(pattern.needles)[0].encode()
    text = noise[:before] + needle.upper() + noise[before:]
    needles = our_index().needles
    folded = text.lower()
    found = needles.found(folded, 0, len(folded))
    assert found == sorted(set(found)) and all(folded.startswith(needles[one][0], place) for place, one in found)
    places = {match.start() for match in re.finditer(re.escape(needle), folded)}
    assert places and {(place, needle) for place in places} <= {(place, needles[one][0]) for place, one in found}
    numbers = frozenset(one for _, one in found)
    last = needles.found(folded, 0, len(folded), numbers)
    assert last == sorted((max(place for place, other in found if other == one), one) for one in numbers)
    half = len(folded) // 2
    assert needles.found(folded, half, len(folded)) == [one for one in found if one[0] >= half]


def test_of_an_endless_line_made_of_one_wording_little_is_looked_at_and_what_else_it_says_is_found():
    made_so = b"aRuntimeError " * 40_000
    scanner = Scanner(our_index(), Source(None, "log"))
    scanner.feed(made_so + b"\nOSError: [Errno 28] No space left on device: '/data/x'\n" + made_so, at_end=True)
    assert "disk-full" in {hit.rule.id for hit in scanner.read.hits}
    folded = made_so.lower()
    needles = our_index().needles
    assert len(needles.found(folded, 0, len(folded))) >= 40_000
    assert len(needles.found(folded, 0, len(folded), scanner._ordinary)) < 20_000


def test_a_line_that_several_wordings_of_a_cause_match_is_shown_once():
    said = "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.\n"
    told = diagnosis_of_text("1 Workers (tasks / actors) killed due to memory pressure (OOM)\n" + said)
    assert [one.line for one in told.evidence] == [1, 2]
