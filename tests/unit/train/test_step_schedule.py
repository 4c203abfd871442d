import pytest

from allranks.config.load import resolve_mapping
from allranks.train.step_schedule import lay_out


def step_schedule(*, num_blocks=100, global_batch=10, has_eval=False, **keys):
    if has_eval:
        keys["val_set_size"] = 0.1
    cfg = resolve_mapping(
        {"base_model": "m", "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "learning_rate": 1e-3, **keys}
    )
    return lay_out(cfg, num_blocks=num_blocks, global_batch=global_batch, has_eval=has_eval)


def test_steps_follow_from_epochs_or_max_steps():
    assert step_schedule(num_epochs=3).num_steps == 30
    assert step_schedule(num_epochs=1.5, num_blocks=99).num_steps == 15
    assert step_schedule(num_epochs=0.5, num_blocks=5, global_batch=1).total_blocks == 3
    assert step_schedule(num_epochs=0.1, num_blocks=30, global_batch=1).total_blocks == 3
    assert step_schedule(num_epochs=0.01, num_blocks=4).num_steps == 1
    assert step_schedule(num_epochs=3, max_steps=7).num_steps == 7


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"save_steps": 4}, {4, 8, 10}),
        ({"save_steps": 0.3}, {3, 6, 9, 10}),
        ({"saves_per_epoch": 2}, {5, 10}),
        ({"save_strategy": "epoch", "num_epochs": 2}, {10, 20}),
        ({"save_strategy": "no"}, {10}),
        ({"save_strategy": "no", "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}, set()),
        ({"save_steps": 500}, {10}),
        ({"save_steps": 500, "save_first_step": True}, {1, 10}),
        ({}, {10}),
    ],
)
def test_when_to_save(keys, expected):
    assert step_schedule(**keys).save_at == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"num_epochs": 2}, {10, 20}),
        ({"eval_steps": 6}, {6, 10}),
        ({"evals_per_epoch": 4}, {3, 5, 8, 10}),
        ({"eval_strategy": "no"}, set()),
        ({"eval_steps": 6, "eval_on_start": True}, {0, 6, 10}),
    ],
)
def test_when_to_evaluate(keys, expected):
    assert step_schedule(has_eval=True, **keys).eval_at == expected


def test_without_evaluation_data_nothing_is_evaluated():
    assert step_schedule().eval_at == set()


def test_bests_are_not_on_the_agenda():
    assert step_schedule(has_eval=True, save_strategy="best", eval_steps=5).save_at == set()
    assert step_schedule(has_eval=True, load_best_model_at_end=True, eval_steps=5, save_steps=4).save_at == {4, 8, 10}
