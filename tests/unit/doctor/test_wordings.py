"""What libraries say when they fail, taken from their sources, and what the doctor makes of each line by itself.

wordings/*.toml, one file a library:

    [[wording]]
    text = '''...'''      # as a user sees it: the library's own format with likely values and its logger's prefix
    cause = "ib-port-down"
    also = ["no-route"]   # as good an answer
    source = "NCCL 2.27, src/transport/net_ib.cc"

`cause` is an id of tests/exam/causes.txt, a symptom's, too, or one of:

    exception     the line tells an exception, and no kind of failure
    consequence   it follows from another rank's end
    unknown       something failed, and nobody can say what from this line; naming anything would be wrong
    harmless      a remark, which a run lives with
"""

import re
import tomllib
from pathlib import Path

import pytest

from allranks.doctor.diagnosis import EXCEPTION, UNKNOWN, Diagnosis
from allranks.doctor.read_logs import diagnosis_of_text

FILES = sorted((Path(__file__).parent / "wordings").glob("*.toml"))
CAUSES = Path(__file__).parents[2] / "exam" / "causes.txt"
BEFORE = "loading the model on 16 ranks\nstep 40 loss 2.31\n"
CONSEQUENCE, NOT_KNOWN, HARMLESS = "consequence", "unknown", "harmless"


def wordings(file: Path) -> list[dict]:
    return tomllib.loads(file.read_text(encoding="utf-8"))["wording"]


def answers(told: Diagnosis) -> set[str]:
    """All that may be written as `cause` of what got this answer."""
    if named := told.cause or told.symptom:
        return {named}
    if any(one.id for one in told.explained):
        return {CONSEQUENCE, NOT_KNOWN}
    assert told.certainty == UNKNOWN
    return {HARMLESS, NOT_KNOWN}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_doctor_makes_of_each_wording_what_it_means(file):
    wrong = []
    for one in wordings(file):
        told = diagnosis_of_text(f"{BEFORE}{one['text'].strip(chr(10))}\n")
        if not answers(told) & {one["cause"], *one.get("also", ())}:
            said = told.evidence[0].text[:80] if told.evidence else ""
            wrong.append(f"{one['cause']}: {sorted(answers(told))} ({told.certainty}) {said!r} | {one['text'].strip()}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_wordings_are_complete_and_each_is_there_once(file):
    ids = set(re.findall(r"^([a-z0-9-]+) \|", CAUSES.read_text(encoding="utf-8"), re.MULTILINE))
    known = ids | {EXCEPTION, CONSEQUENCE, NOT_KNOWN, HARMLESS}
    texts = [one["text"].strip() for one in wordings(file)]
    assert len(texts) == len({*texts}), sorted({text for text in texts if texts.count(text) > 1})
    for one in wordings(file):
        assert set(one) <= {"text", "cause", "also", "source"}, one
        assert one["text"].strip() and len(one["source"]) > 5, one
        assert {one["cause"], *one.get("also", ())} <= known, one
