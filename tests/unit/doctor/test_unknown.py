"""Where no cause is known, the answer says what is true of the logs all the same."""

import os
from pathlib import Path

import pytest

from allranks.doctor.diagnosis import Diagnosis
from allranks.doctor.of_run import diagnosis_of_run
from allranks.doctor.read_logs import diagnosis_of_logs, diagnosis_of_text
from allranks.doctor.told import lines_of

TRACEBACK = """\
step 3 loss 1.0
[rank1]: Traceback (most recent call last):
[rank1]:   File "/home/u/train.py", line 88, in <module>
[rank1]:     main()
[rank1]:   File "/home/u/train.py", line 61, in main
[rank1]:     widget.turn()
acme.WidgetError: widget 7 is not aligned
"""


def test_logs_with_nothing_in_them_are_told_as_empty(tmp_path):
    (tmp_path / "a.log").touch()
    (tmp_path / "b.log").touch()
    assert diagnosis_of_logs([tmp_path / "a.log"]).title == "unknown: the log is empty"
    assert "all 2 logs are empty" in diagnosis_of_logs([tmp_path]).title


def test_a_run_without_logs_is_told_as_one(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    assert diagnosis_of_run(tmp_path).title == "unknown: there are no logs"


@pytest.mark.parametrize("end", range(TRACEBACK.index("[rank1]:     main"), TRACEBACK.index("Error:"), 5))
def test_a_log_that_ends_within_a_traceback_is_told_as_one(end):
    told = diagnosis_of_text(TRACEBACK[:end])
    assert told.cause is None and "within a traceback" in told.title
    assert (told.rank, told.evidence[0].line) == (1, 2)
    assert told.evidence[-1].line == (5 if TRACEBACK.index("line 61") < end else 3) or TRACEBACK[:end].count("\n") == 4


def test_a_traceback_that_ends_or_that_the_run_went_on_after_is_none_that_is_cut_off():
    assert diagnosis_of_text(TRACEBACK).cause == "exception"
    assert "traceback" not in diagnosis_of_text(TRACEBACK[: TRACEBACK.index("acme")] + "step 4 loss 0.9\n").title


def test_what_is_no_text_is_told(tmp_path):
    log = tmp_path / "events.out.tfevents.1.node7"
    log.write_bytes(os.urandom(5000))
    assert any("is no text" in note for note in diagnosis_of_logs([log]).notes)
    log.write_bytes("\x1b[31mStufe 3 größer als 1\x1b[0m\r\n\tend\b\n".encode() * 50)
    assert not diagnosis_of_logs([log]).notes


def test_of_what_was_written_over_the_lines_are_counted_as_editors_do():
    """The end of a log is looked at by itself: its lines have the numbers that the rest has."""
    bar = "\r".join(f"{at}%|# | {at}/9 [00:01<00:01, 1.0it/s]" for at in range(9))
    told = diagnosis_of_text(f"{bar}\n{bar}\nfatal: no space left on the device\n")
    assert told.evidence[0].line == 3


def test_what_is_cut_is_seen_to_be():
    told = diagnosis_of_text(
        "Traceback (most recent call last):\n" + '  File "a.py", line 1\n' + f"FooError: {'x' * 3000}\n"
    )
    assert all("…" in line for line in lines_of(told) if "xxx" in line)


def test_the_keys_for_programs_are_those_that_the_documentation_lists():
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text()
    section = page.partition("## For programs")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    documented = {name.strip(" `") for row in rows for name in row.split(",")}
    assert documented == set(Diagnosis(None, "", "unknown").to_message())


def test_a_packed_log_that_cannot_be_read_here_is_told_though_others_beside_it_are(tmp_path):
    (tmp_path / "a.log").write_text(TRACEBACK)
    (tmp_path / "b.log.zst").write_bytes(b"\x28\xb5\x2f\xfd\0\0")
    told = diagnosis_of_logs([tmp_path])
    assert told.cause == "exception" and any("b.log.zst" in note and "zstdcat" in note for note in told.notes)
