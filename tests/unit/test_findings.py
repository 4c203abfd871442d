import json

import pytest

from allranks.findings import MAX_TEXT, Evidence, Finding, Who, from_message, printed

FULL = Finding(
    "rank-error",
    "rank 3 (node 1, gpu7) failed first: no space left",
    who=Who(1, 3, "gpu7"),
    evidence=(Evidence("last words", "rank-00003.log", 7), Evidence("and more")),
    remedy="its log: rank-00003.log\nall logs: logs/node-1",
    known_at=1,
    is_certain=False,
)


@pytest.mark.parametrize("finding", [FULL, Finding("node-error", "it failed"), Finding("x", "y", who=Who("gpu6"))])
def test_what_is_sent_is_what_arrives(finding):
    arrived = from_message(json.loads(json.dumps(finding.to_message())))
    assert arrived is not None and arrived.to_message() == finding.to_message()
    assert printed(arrived) == printed(finding)


def test_it_is_printed_with_what_shows_it_and_what_to_do():
    assert printed(FULL).splitlines() == [
        "error: rank 3 (node 1, gpu7) failed first: no space left",
        "  | last words",
        "  | and more",
        "  its log: rank-00003.log",
        "  all logs: logs/node-1",
    ]


@pytest.mark.parametrize("message", [None, 7, "text", [], {}, {"code": "x"}, {"code": 1, "what": "y"}, {"what": "y"}])
def test_what_is_none_is_none(message):
    assert from_message(message) is None


@pytest.mark.parametrize("junk", [None, 7, "junk", [None, 7, {"text": 5}], {"node": [], "rank": "3"}, True, 10**30])
@pytest.mark.parametrize("field", ["who", "evidence", "remedy", "severity", "known_at", "of_a_later_version"])
def test_a_field_of_another_type_is_passed_over(field, junk):
    arrived = from_message({**FULL.to_message(), field: junk})
    assert arrived is not None and (arrived.code, arrived.what) == (FULL.code, FULL.what)
    json.dumps(arrived.to_message())


def test_it_is_bounded_and_controls_no_terminal():
    long = Finding("x", "\x1b[2J" + "w" * 10**6, evidence=tuple(Evidence("l" * 10**5) for _ in range(1000)))
    assert len(json.dumps(long.to_message())) < 65 * MAX_TEXT * 1.1
    arrived = from_message({"code": "x", "what": "\x1b[2J" + "w" * 10**6})
    assert arrived is not None and "\x1b" not in arrived.what and len(arrived.what) == MAX_TEXT
