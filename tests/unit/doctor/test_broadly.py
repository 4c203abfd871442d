"""What no rule words is named by what it speaks of, likely at most; where the run went on, it is not."""

import pytest

from allranks.doctor import broadly
from allranks.doctor.diagnosis import LIKELY
from allranks.doctor.read_logs import diagnosis_of_text
from allranks.doctor.ruleset import CAUSE, RETRIED, all_rules

RAISED = """Traceback (most recent call last):
  File "/home/ana/fit.py", line 41, in forward
    return mix(left, right)
TensorPlaceError: left and right have to be on the same device, and left is on the first GPU
"""


def test_an_exception_of_unknown_wording_is_named_by_what_it_speaks_of():
    told = diagnosis_of_text(RAISED)
    assert (told.cause, told.certainty, told.is_broad) == ("device-mismatch", LIKELY, True)
    assert told.evidence[0].line == 4 and "line 41 of /home/ana/fit.py" in told.meaning
    assert told.not_proven.startswith(broadly.NOT_PROVEN)


def test_its_message_may_go_on_in_the_next_lines():
    told = diagnosis_of_text(RAISED.replace("left and right have", "what follows:\n  they have"))
    assert (told.cause, told.is_broad) == ("device-mismatch", True)


def test_what_speaks_of_nothing_known_stays_an_exception():
    told = diagnosis_of_text(RAISED.replace("on the same device", "friends"))
    assert (told.cause, told.is_broad) == ("exception", False)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("error: worker 3 of the loader met an unsupported GPU arch", "cuda-no-kernel-image"),
        ("error: Can\u2019t load tokenizer for \u2018ours/model\u2019", "model-files-missing"),
        ("launcher: fatal: the volume is full, cannot go on", "disk-full"),
        ("mylauncher: failed to reach the rendezvous on node 0", "store-unreachable"),
    ],
)
def test_a_last_line_that_says_that_something_failed_is_taken_for_what_it_speaks_of(line, cause):
    told = diagnosis_of_text(f"starting\n{line}\n")
    assert (told.cause, told.certainty, told.is_broad) == (cause, LIKELY, True)
    assert told.evidence[0].line == 2


@pytest.mark.parametrize(
    "log",
    [
        "launcher: error: the volume is full\nstep 10 loss 2.0\nstep 11 loss 1.9\nstep 12 loss 1.8\n",
        "INFO launcher: error: the volume is full\n",
        "WARNING launcher: error: the volume is full\n",
        "launcher: error: the volume is full, falling back to /tmp\n",
        "the volume is full of good things\n",
        "import time: 281 | allranks.config.unsupported\n",
    ],
)
def test_what_the_run_lived_through_or_only_remarked_names_nothing(log):
    assert diagnosis_of_text(log).cause is None


def test_what_a_rule_knows_goes_before():
    told = diagnosis_of_text(
        "launcher: error: the volume is full\nRuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
    )
    assert (told.cause, told.is_broad) == ("cuda-out-of-memory", False)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("pod:\n  message: 'AssertionError: the groups were not made'\n  reason: Error\n", 2),
        ("Exception: nobody answers, five times\n", 1),
        ('  File "/home/ana/fit.py", line 3, in place\n    assert left.friends == right.friends\n', 2),
        ('  File "/home/ana/fit.py", line 3, in place\n    raise OddError(\nplease be even\n', 2),
    ],
)
def test_an_exception_within_other_text_and_one_that_is_cut_off_are_told_as_such(log, line):
    told = diagnosis_of_text(log)
    assert (told.cause, told.certainty, told.evidence[0].line) == ("exception", LIKELY, line)


@pytest.mark.parametrize(
    "log",
    [
        '  File "/opt/torch/distributed/run.py", line 3, in launch\n    raise ChildFailedError(\n',
        '  File "/home/ana/fit.py", line 3, in place\n    assert left == right\n' + "more\n" * 9,
        '  File "/home/ana/fit.py", line 3, in place\n    left = right\n',
    ],
)
def test_what_only_the_launcher_raises_or_is_cut_off_elsewhere_tells_nothing(log):
    assert diagnosis_of_text(log).cause is None


def test_only_causes_have_broad_wordings():
    assert [rule.id for rule in all_rules() if rule.broad and rule.kind not in (CAUSE, RETRIED)] == []
