"""How far a run came: a bar that is drawn once more is no further step."""

import pytest

from allranks.doctor.read_logs import diagnosis_of_text

STEP = " 33%|███▎      | 2/6 [00:00<00:01,  2.76it/s]"
RAISED = 'Traceback (most recent call last):\n  File "a.py", line 19, in step\n    go()\nValueError: bad batch 17\n'
ENDED = "E1129 10:06:59.884000 20875 torch/distributed/elastic/api.py:1002] failed (exitcode: 1) local_rank: 1"


def _labelled(text: str, rank: int) -> str:
    return "".join(f"[rank{rank}]: {line}\n" for line in text.splitlines())


@pytest.mark.parametrize("closing", [1, 2, 8])
def test_bars_that_are_drawn_anew_when_ranks_end_do_not_take_an_exception_back(closing):
    log = f"{STEP}\n{_labelled(RAISED, 1)}" + f"{STEP}\n" * closing + ENDED
    assert diagnosis_of_text(log).cause == "exception"
    assert diagnosis_of_text(log).rank == 1


def test_a_bar_that_the_failing_rank_closes_does_not_take_it_back():
    log = _labelled(STEP, 1) + _labelled(RAISED, 1) + _labelled(STEP, 1) + ENDED
    assert diagnosis_of_text(log).cause == "exception"


def test_further_steps_do_and_so_does_another_bar():
    for bars in (["3/6", "4/6", "5/6"], ["1/9", "2/9", "3/9"], ["1/6", "2/6", "3/6"]):
        further = "".join(f"50%|███   | {bar} [00:01<00:01,  2.76it/s]\n" for bar in bars)
        assert diagnosis_of_text(f"{STEP}\n{RAISED}{further}").cause is None, bars


def test_the_step_is_the_last_that_a_line_tells():
    log = f" 17%|█▋        | 1/6 [00:00<00:03,  1.49it/s]                         {STEP}\n{RAISED}{ENDED}"
    told = diagnosis_of_text(log)
    assert told.restart is not None
    assert told.restart.step == 2
