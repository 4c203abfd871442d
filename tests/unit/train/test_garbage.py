"""Python's garbage collector while a run trains."""

import gc
import weakref

import pytest

from allranks.config.load import resolve_mapping
from allranks.train.garbage import EVERY, Garbage, garbage, keep_imports
from allranks.train.step_schedule import lay_out
from tests.tiny_models import flat_for


class Cycle:
    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def collector_left_on():
    assert gc.isenabled()
    yield
    gc.enable()


def made(tmp_path, **keys):
    """The collector of a run of 10 blocks an epoch and 5 a step, evaluated every 3 steps, and its step_schedule."""
    flat = flat_for(tmp_path, num_epochs=3, batch_size=5, micro_batch_size=5, val_set_size=0.1, eval_steps=3, **keys)
    cfg = resolve_mapping(flat)
    step_schedule = lay_out(cfg, num_blocks=10, global_batch=5, has_eval=True)
    return garbage(cfg, step_schedule), step_schedule


def test_nothing_is_collected_between_the_steps_and_all_of_it_at_the_set_one():
    collector = Garbage(lambda step: step == 3)
    with collector.held_back():
        lost = weakref.ref(Cycle())
        for _ in range(5000):  # Python would have collected after 700
            Cycle()
        assert [collector.after_step(step) for step in (1, 2)] == [0.0, 0.0]
        assert lost() is not None
        assert collector.after_step(3) > 0
        assert lost() is None


def test_what_was_there_before_is_not_looked_at_again_and_no_longer_frozen_afterwards():
    frozen = gc.get_freeze_count()
    here = [[] for _ in range(2000)]
    with Garbage().held_back():
        assert gc.get_freeze_count() >= frozen + len(here)
    assert gc.get_freeze_count() == 0


def test_what_was_imported_is_not_looked_at_before_the_first_step():
    seen = []
    look = lambda phase, info: seen.append(len(gc.get_objects())) if phase == "start" else None  # noqa: E731
    keep_imports()
    gc.callbacks.append(look)
    try:
        with Garbage().held_back():
            pass
    finally:
        gc.callbacks.remove(look)
    assert max(seen) < 5000  # of more than 100,000 of torch and its like


def test_it_is_on_again_however_the_steps_end():
    with pytest.raises(KeyboardInterrupt), Garbage().held_back():
        assert not gc.isenabled()
        raise KeyboardInterrupt
    assert gc.isenabled()


def test_one_that_was_off_stays_off():
    gc.disable()
    with Garbage().held_back():
        pass
    assert not gc.isenabled()


def test_an_evaluation_is_collected_whenever_python_likes():
    collector = Garbage()
    with collector.held_back():
        with collector.let_go():
            assert gc.isenabled()
        assert not gc.isenabled()
    with collector.let_go():  # the evaluation before the first step
        pass
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("keys", "due"),
    [
        ({}, []),
        ({"gc_steps": 0}, []),
        ({"gc_steps": 4}, [4]),
        ({"gc_steps": -1}, [2, 3, 4, 6]),  # epochs end at 2, 4 and 6; evaluations are due at 3 and 6
    ],
)
def test_the_steps_are_those_of_the_config(tmp_path, keys, due):
    collector, step_schedule = made(tmp_path, **keys)
    assert step_schedule.num_steps == 6
    assert [step for step in range(1, 7) if collector.due(step)] == due
    if not keys.get("gc_steps"):
        assert [step for step in range(1, 2 * EVERY + 1) if collector.due(step)] == [EVERY, 2 * EVERY]
