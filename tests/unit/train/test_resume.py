from dataclasses import replace

import pytest

from allranks.checkpoint import commit
from allranks.checkpoint.state import RunState
from allranks.config.load import resolve_mapping
from allranks.errors import CheckpointError
from allranks.observe import RunDir
from allranks.train.resume import _WATCHED, archive_newer, check_trajectory, global_batch_size
from allranks.train.storage import ALONE


def config(**keys):
    return resolve_mapping(
        {"base_model": "m", "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "learning_rate": 1e-3, **keys}
    )


def state_of(cfg, **fields):
    return RunState(5, cfg.flat(), **{"fingerprint": "f", "data_seed": 42, "global_batch": 8, **fields})


def check(then, now, **fields):
    warnings = []
    check_trajectory(RunDir("r").checkpoint(5), state_of(then, **fields), now, "f", warnings.append)
    return warnings


def test_the_same_config_is_taken_without_a_word():
    assert check(config(), config()) == []
    assert check(config(), config(output_dir="elsewhere", save_steps=5, logging_steps=3)) == []


@pytest.mark.parametrize(
    ("now", "fields", "named"),
    [
        ({}, {"fingerprint": "g"}, "prepared data"),
        ({"seed": 1}, {}, "seed of the order"),
        ({"group_by_length": True}, {}, "group_by_length is True here, False there"),
        ({"optimizer": "sgd"}, {}, "optimizer is sgd here, adamw_torch_fused there"),
    ],
)
def test_another_trajectory_is_refused(now, fields, named):
    with pytest.raises(CheckpointError, match=named):
        check(config(), config(**now), **fields)


def test_another_adapter_is_refused():
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    with pytest.raises(CheckpointError, match="lora_alpha is 16 here, 8 there"):
        check(config(**lora), config(**{**lora, "lora_alpha": 16}))


def test_other_rates_of_an_adapter_are_told():
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    (told,) = check(config(**lora, loraplus_lr_ratio=4.0), config(**lora, loraplus_lr_ratio=16.0))
    assert told.startswith("loraplus_lr_ratio is 16.0 from here on; it was 4.0")


def test_what_changes_the_next_steps_is_told():
    [schedule, rate] = check(config(), config(learning_rate=5e-4, lr_scheduler="linear"))
    assert rate.startswith("lr_scheduler is linear from here on") and "learning_rate is 0.0005" in schedule


def test_the_global_batch_of_a_run_stays():
    warnings = []
    assert global_batch_size(config(micro_batch_size=2), 4, None, warnings.append) == 8
    assert global_batch_size(config(micro_batch_size=2), 1, RunState(5, {}, global_batch=8), warnings.append) == 8
    assert "keeping the run's 8" in warnings[0]
    with pytest.raises(CheckpointError, match="Set batch_size: 8"):
        global_batch_size(config(batch_size=16), 1, RunState(5, {}, global_batch=8), warnings.append)


def test_checkpoints_after_the_one_resumed_are_set_aside(tmp_path):
    run = RunDir(tmp_path)
    for step in (5, 10, 15):
        run.checkpoint(step).mkdir(parents=True)
        commit.commit(run.checkpoint(step), {})
    said = []
    archive_newer(run, 5, ALONE, said.append)
    assert [commit.step_of(path) for path in commit.complete_checkpoints(run.checkpoints)] == [5]
    assert len(said) == 2 and len(list(run.checkpoints.glob("abandoned-*"))) == 2


def test_set_aside_checkpoints_are_not_listed_again(tmp_path):
    run = RunDir(tmp_path)
    run.checkpoint(9).mkdir(parents=True)
    commit.commit(run.checkpoint(9), {})
    archive_newer(run, 1, ALONE, lambda text: None)
    assert commit.complete_checkpoints(run.checkpoints) == []


LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
NEVER_SAID = [key for key in sorted(_WATCHED) if key not in ("base_model", "learning_rate", *LORA)]


@pytest.mark.parametrize("key", NEVER_SAID)
def test_a_key_that_an_older_version_did_not_know_had_its_default(key):
    then = state_of(config(**LORA))
    then = replace(then, config={name: value for name, value in then.config.items() if name != key})
    warnings = []
    check_trajectory(RunDir("r").checkpoint(5), then, config(**LORA), "f", warnings.append)
    assert warnings == []


def test_a_key_that_an_older_version_did_not_know_counts_when_it_is_set_now():
    then = state_of(config(**LORA))
    then = replace(then, config={name: value for name, value in then.config.items() if name != "peft_use_rslora"})
    with pytest.raises(CheckpointError, match="peft_use_rslora is True here, False there"):
        check_trajectory(RunDir("r").checkpoint(5), then, config(**LORA, peft_use_rslora=True), "f", print)
