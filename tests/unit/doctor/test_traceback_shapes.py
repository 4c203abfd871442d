"""Tracebacks as logs and web pages set them: under prefixes nobody knows, without indents, in boxes, with arrows."""

import pytest

from allranks.doctor.read_logs import diagnosis_of_text
from allranks.doctor.reading.lines import Line
from allranks.doctor.reading.tracebacks import traceback_of


def read(text):
    return traceback_of(Line("log", number, line) for number, line in enumerate(text.strip("\n").splitlines(), 1))


FLAT = """
Traceback (most recent call last):
File "/opt/cog/worker.py", line 352, in _predict
result = predict(
^^^^^^^^
File "/src/train.py", line 97, in run
self.sd.load_model()
raise ValueError(
lib.FrobError: no frobs
"""
UNDER_A_PREFIX = """
trainer - [w3] Traceback (most recent call last):
trainer - [w3]   File "/src/train.py", line 97, in run
trainer - [w3]     self.load()
trainer - [w3] lib.FrobError: no frobs
"""
BOX = """
╭───────────── Traceback (most recent call last) ─────────────╮
│ /opt/lib/python3.10/runpy.py:196 in _run_module_as_main     │
│                                                             │
│   193 │   main_globals = sys.modules["__main__"].__dict__   │
│ /src/train.py:97 in run                                     │
│ ❱  97 │   raise RuntimeError("CUDA out of memory")          │
╰─────────────────────────────────────────────────────────────╯
lib.FrobError: no frobs
"""
BOX_OF_OLD_TERMINALS = """
+------------- Traceback (most recent call last) -------------+
| /src/train.py:97 in run                                     |
| >  97     raise RuntimeError("CUDA out of memory")          |
+-------------------------------------------------------------+
lib.FrobError: no frobs
"""
IPYTHON = """
FrobError                                 Traceback (most recent call last)
Cell In[92], line 2
----> 2 trainer.train()
File /src/train.py:97, in run(self)
     96 if self.small:
---> 97     raise RuntimeError("CUDA out of memory")
     98 return None

FrobError: no frobs
"""


@pytest.mark.parametrize("text", [FLAT, UNDER_A_PREFIX, BOX, BOX_OF_OLD_TERMINALS, IPYTHON])
def test_what_was_raised_and_where_is_told_however_it_is_set(text):
    found = read(text)
    assert [(one.type.rpartition(".")[2], one.message) for one in found.chain] == [("FrobError", "no frobs")]
    assert found.chain[0].said.text.endswith("FrobError: no frobs") and "[w3]" not in found.chain[0].said.text
    assert (found.chain[0].frame.file, found.chain[0].frame.line) == ("/src/train.py", 97)
    assert found.code == frozenset(range(2, len(text.strip("\n").splitlines())))


@pytest.mark.parametrize("text", [BOX, BOX_OF_OLD_TERMINALS, IPYTHON])
def test_the_programs_text_in_boxes_and_beside_arrows_names_no_cause(text):
    told = diagnosis_of_text(text)
    assert told.cause == "exception" and told.evidence[0].text.endswith("FrobError: no frobs")


@pytest.mark.parametrize(
    "text",
    [
        'Traceback (most recent call last):\nFile "/src/train.py", line 97, in run\n'
        + "step 1 loss 2\n" * 9
        + "FrobError: x",
        "Traceback (most recent call last):\nstep 1\nFrobError: x",
        "+--- Traceback (most recent call last) ---+\nstep 1\nFrobError: x",
    ],
)
def test_a_traceback_that_another_line_breaks_off_is_none(text):
    found = read(text)
    assert found is None or all(one.type != "FrobError" for one in found.chain)


def test_lines_that_a_page_has_joined_are_parted():
    prefix = "2025-10-31 03:11:02,478 - Tuner - INFO - [rank0]: "
    assert diagnosis_of_text(f"{prefix}  assert x            {prefix}FrobError").cause == "exception"
    assert diagnosis_of_text(f"{prefix}  assert x {prefix}FrobError").cause is None


@pytest.mark.parametrize(
    "cut",
    [
        '│ ❱ 3 │   raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")   │',
        '│   3 raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")       │',
        '---> 97     raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")',
    ],
)
def test_the_programs_text_names_no_cause_where_the_begin_of_its_traceback_is_cut_off(cut):
    assert diagnosis_of_text(f"{cut}\nFrobError: no frobs").cause == "exception"
    assert diagnosis_of_text(cut.partition("raise ")[2]).cause == "cuda-out-of-memory"


@pytest.mark.parametrize("line", ["`FrobError: no frobs`", "**FrobError: no frobs**", 'x = "a\\nFrobError: no frobs"'])
def test_an_exception_within_marks_of_a_page_or_behind_a_spelled_newline_is_told(line):
    assert diagnosis_of_text(line).cause == "exception"
