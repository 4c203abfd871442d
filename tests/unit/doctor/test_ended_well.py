"""Logs of others whose end is plain to see: nothing failed. Of what might still fail, it is unknown."""

from pathlib import Path

import pytest

from allranks.doctor.read_logs import diagnosis_of_logs, diagnosis_of_text

HEALTHY = Path(__file__).parents[2] / "exam" / "healthy"
SAY_THE_END = (
    "axolotl-rank-logging",
    "llamafactory-sft-ends-well",
    "pbs-job-completes",
    "slurm-queued-then-runs",
    "ssh-launch-with-noise",
    "torchrun-elastic-infos",
    "transformers-trainer",
)


@pytest.mark.parametrize("name", SAY_THE_END)
def test_a_log_that_says_its_end_says_that_nothing_failed(name):
    told = diagnosis_of_logs([HEALTHY / f"{name}.log"])
    assert (told.cause, told.certainty, told.ended_well) == (None, "likely", True)
    assert told.title.startswith("nothing failed: ") and told.evidence[0].line is not None


@pytest.mark.parametrize(
    "log",
    [
        "{'train_runtime': 9.1}\n{'loss': 1.2, 'epoch': 2.0}\nstep 12\n",  # it goes on
        "step 1 loss 2.0\nstep 2 loss 1.9\n",
        "download of model.safetensors succeeded\n",
        "Root Cause (first observed failure):\n",
    ],
)
def test_a_log_that_does_not_is_unknown(log):
    assert not diagnosis_of_text(log).ended_well


def test_a_log_of_two_starts_of_which_the_second_ended_well_says_that_nothing_failed():
    """What followed from the first one's end is none of the second's."""
    first = "Traceback (most recent call last):\n  File 'x', line 1\nKeyError: 'a'\n"
    first += "Sending process 7 closing signal SIGTERM\n"
    steps = "".join(f"{{'loss': 1.{step}, 'epoch': 0.{step}}}\n" for step in range(9))
    assert diagnosis_of_text(f"{first}{steps}{{'train_runtime': 9.1}}\n").ended_well
    assert not diagnosis_of_text(f"{first}{{'train_runtime': 9.1}}\n").ended_well
    assert diagnosis_of_text(f"{steps}{first}").cause == "exception"
