"""What is said of a word that the config does not know: the one that was meant, of keys and of values."""

import re

import pytest

from allranks.config import RunConfig, dataset_types
from allranks.config.foreign.words import ADVICE, VALUES
from allranks.config.load import resolve_mapping
from allranks.config.names import known_keys
from allranks.errors import ConfigError

MINIMAL = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "alpaca"}]}


def said(**keys: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_mapping({**MINIMAL, **keys})
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        *(("lr_scheduler", "cosin", "cosine"), ("lr_scheduler", "wsd", "warmup_stable_decay")),
        *(("optimizer", "adamw", "adamw_torch_fused"), ("optimizer", "AdamW-8bit", "adamw_bnb_8bit")),
        *(("optimizer", "adafctor", "adafactor"), ("optimizer", "muonn", "muon")),
        *(("attn_implementation", "fa2", "flash_attention_2"), ("attn_implementation", "SDPA", "sdpa")),
        *(("adapter", "LoRA", "lora"), ("save_strategy", "epochs", "epoch"), ("adapter", "full", "no such key")),
        *(("excess_length_strategy", "truncat", "truncate"), ("ddp_comm_hook", "powersgd16", "power_sgd")),
        *(("fsdp_config", {"state_dict_type": "FULL"}, "FULL_STATE_DICT"), ("bf16", "ful", "full")),
        *(("datasets", [{"path": "d", "ds_type": "jsn"}], "json"), ("fsdp", ["ful_shard"], "full_shard")),
    ],
)
def test_the_nearest_value_is_named(key, value, meant):
    assert f"; did you mean {meant}" in said(**{key: value})


@pytest.mark.parametrize("value", ["xyzzy", "", "a b c d"])
def test_a_value_that_is_near_to_none_gets_no_guess(value):
    assert "did you mean" not in said(lr_scheduler=value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *(("per_device_batch_size", "micro_batch_size"), ("gradient_clipping", "max_grad_norm")),
        *(("cutoff_len", "sequence_len"), ("truncation_strategy", "excess_length_strategy")),
        *(("split_dataset_ratio", "val_set_size"), ("Learning-Rate", "learning_rate")),
    ],
)
def test_another_trainers_key_leads_to_ours(key, meant):
    assert said(**{key: 1}).endswith(f"unknown key; did you mean {meant}?")


@pytest.mark.parametrize(
    ("key", "part"),
    [
        *(("report_to", "`use_wandb`"), ("torch_dtype", "`bf16: full`"), ("quantization_bit", "`load_in_4bit: true`")),
        *(("finetuning_type", "`adapter: lora`"), ("train_type", "`adapter: lora`"), ("warmup", "`warmup_ratio`")),
        *(("reprot_to", "report_to of another trainer"), ("max_samples", "`split: train[:1000]`")),
    ],
)
def test_a_key_with_no_single_counterpart_is_told_how_it_is_said_here(key, part):
    assert part in said(**{key: 1})


def test_what_is_advised_exists():
    texts = [*ADVICE.values(), *(text for values in VALUES.values() for text in values.values())]
    for quoted in (quoted for text in texts for quoted in re.findall(r"`(\w+)`|`(\w+):", text)):
        key = quoted[0] or quoted[1]
        assert key in known_keys() or key in ("split", "path", "field", "name", "type"), key
    assert not set(ADVICE) & known_keys()
    for key, values in VALUES.items():
        for theirs, ours in values.items():
            if re.fullmatch(r"\w+", ours):
                config = resolve_mapping({**MINIMAL, key: ours})
                assert isinstance(config, RunConfig)
            assert "did you mean" in said(**{key: theirs}), theirs


def test_all_problems_are_told_at_once_those_between_keys_too():
    text = said(
        adapter="lora", lora_alpha=16, optimizer="adamw", save_strategy="epoch", saves_per_epoch=3, fp16=True, bf16=True
    )
    for part in ("lora_r: required", "optimizer: expected", "saves_per_epoch: needs", "fp16: excludes bf16"):
        assert part in text


@pytest.mark.parametrize(
    ("keys", "number"),
    [
        ({"save_strategy": "steps", "save_step": 5}, 1),  # not: needs `save_steps`
        ({"save_strategy": "steps", "save_steps": "five"}, 1),
        ({"load_best_model_at_end": True, "val_set_size": "much"}, 1),
        ({"adapter": "lora", "lora_r": "8", "lora_alpha": 8}, 1),
        ({"learning_rate": None, "deepspeed": {"optimizer": {"type": "AdamW", "params": {"lr": 3.0}}}}, 1),
        ({"learning_rate": None, "lora_modules_to_sav": ["a"], "eval_steps": 3}, 3),
    ],
)
def test_what_follows_from_another_problem_is_not_told_as_one_more(keys, number):
    text = said(**keys)
    assert len(text.splitlines()[1:]) + (number == 1) == number, text


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ({"type": "alpca"}, "datasets.0.type: 'alpca' is not known; did you mean alpaca?"),
        ({"type": "chat-template"}, "did you mean chat_template?"),
        ({"type": "xyzzy"}, "is not known. Types: chat_template, completion,"),
        ({"type": "completion:chat"}, "only prompt types such as alpaca have a style"),
        ({"type": "alpaca", "field_messages": "m"}, "datasets.0.field_messages: has no effect with type alpaca"),
        (
            {"type": "alpaca", "message_field_role": "m"},
            "datasets.0.message_field_role: has no effect with type alpaca",
        ),
        ({"field": "text"}, "datasets.0.field: has no effect with type tokenized; it is for completion"),
    ],
)
def test_a_wrong_type_of_a_data_set_is_found_from_the_config(spec, part):
    """Before the tokenizer's library is imported, which takes seconds."""
    assert part in said(datasets=[{"path": "d", **spec}])
    assert part.replace("datasets", "test_datasets") in said(test_datasets=[{"path": "d", **spec}])


def test_the_types_are_those_that_have_a_reader():
    from allranks.data import formats, prompts

    assert set(dataset_types.TYPES) == {*formats._TYPES, *prompts.PROMPT_TYPES}
    assert tuple(prompts.PROMPT_TYPES) == dataset_types.PROMPT_TYPES
