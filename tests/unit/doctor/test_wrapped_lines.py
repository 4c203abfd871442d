"""A message that was wrapped is read as the one it is, likely at most; lines that only follow each other are not."""

import pytest

from allranks.doctor.diagnosis import LIKELY
from allranks.doctor.read_logs import diagnosis_of_text

START = "loading the model on 16 ranks\nstep 40 loss 2.31\n"
NCCL = "gpu3:4711:4790 [3] transport/net_ib.cc:2458 NCCL WARN NET/IB: Got completion from peer"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (f"{NCCL}\n10.0.0.5<41234> with status=10 opcode=1 len=0 vendor err 136 (Send)\n", "ib-remote-access"),
        (f"{NCCL} 10.0.0.\n5<41234> with status=10 opcode=1 len=0 vendor err 136 (Send)\n", "ib-remote-access"),
        ("RuntimeError: [/gloo/transport/tcp/pair.cc:799] bind: Cannot assign\nrequested address\n", "wrong-interface"),
        (
            'Traceback (most recent call last):\n  File "fit.py", line 3, in fit\n    run()\n'
            "torch.AcceleratorError: CUDA error: the provided PTX was compiled with an unsupported\n"
            "toolchain.\nmore that is said\n",
            "cuda-driver-too-old",
        ),
        (
            "\u2502 RuntimeError: mat1 and mat2 must have     \u2502\n"
            "\u2502 the same dtype, but got Float and Half    \u2502\n",
            "dtype-mismatch",
        ),
    ],
)
def test_a_wording_that_goes_on_in_the_next_line_is_known(log, cause):
    told = diagnosis_of_text(START + log)
    assert (told.cause, told.certainty, told.is_broad) == (cause, LIKELY, False)


@pytest.mark.parametrize(
    "log",
    [
        f"{NCCL}\n[rank2]: 10.0.0.5<41234> with status=10 opcode=1\n",  # of another rank
        f"{NCCL}\n2026-03-02 11:40:12,511 ERROR 10.0.0.5<41234> with status=10 opcode=1\n",  # another record
        f"{NCCL}\n\n10.0.0.5<41234> with status=10 opcode=1\n",
        f"{NCCL}\n10.0.0.5<41234> with status=10 opcode=1\nstep 41 loss 2.30\nstep 42 loss 2.29\n",  # it went on
    ],
)
def test_lines_that_only_follow_each_other_are_not_one(log):
    assert diagnosis_of_text(START + log).cause is None


def test_what_a_rule_knows_in_one_line_goes_before():
    wrapped = "RuntimeError: [/gloo/transport/tcp/pair.cc:799] bind: Cannot assign\nrequested address\n"
    told = diagnosis_of_text(START + wrapped + "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n")
    assert told.cause == "cuda-out-of-memory"


def test_an_exception_whose_message_ends_as_a_broken_connection_does_is_no_cause():
    told = diagnosis_of_text(
        START + "RuntimeError: [/gloo/transport/tcp/pair.cc:553] Connection closed\nby peer [::1]\n"
    )
    assert (told.cause, [one.id for one in told.explained]) == (None, ["peer-gone"])
