import pytest

from allranks.config.sections.data import DatasetSpec
from allranks.data.fitting import way_out

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
RECORDS = {
    "type: chat_template": {"conversations": [{"from": "human", "value": "a"}]},
    "type: alpaca": {"instruction": "a", "input": "", "output": "b"},
    "type: gpteacher": {"instruction": "a", "response": "b"},
    "type: oasst": {"INSTRUCTION": "a", "RESPONSE": "b"},
    "type: alpaca_chat.load_qa": {"question": "a", "answer": "b", "id": "c"},
    "type: alpaca_w_system.load_open_orca": {"system_prompt": "", "question": "a", "response": "b"},
    "type: input_output": {"segments": [{"label": True, "text": "a"}]},
    "type: completion": {"text": "a", "url": "b"},
    "no type": {"input_ids": [1], "labels": [1]},
    "type: chat_template with field_messages: dialogue": {"dialogue": TURNS},
    "type: {field_instruction: prompt, field_output: completion}": {"prompt": "a", "completion": "b"},
    "type: completion with field: content": {"content": "a", "n": 1},
}


@pytest.mark.parametrize("setting", RECORDS)
def test_the_type_that_fits_is_named_for_every_other(setting):
    for other in RECORDS:
        name = other.removeprefix("type: ")
        if " " in name or "{" in name:
            continue
        expected = None if name == setting.removeprefix("type: ") else f"For these fields use {setting}"
        if name == "alpaca_w_system.load_open_orca" or (name == "no type" and setting == "no type"):
            continue
        assert way_out(RECORDS[setting], DatasetSpec(path="a", type=name)) == expected


def test_what_is_advised_is_taken(encode):
    encode(RECORDS["type: alpaca"], {"type": "alpaca"})
    encode(
        RECORDS["type: chat_template with field_messages: dialogue"],
        {"type": "chat_template", "field_messages": "dialogue"},
    )
    own = {"field_instruction": "prompt", "field_output": "completion"}
    encode(RECORDS["type: {field_instruction: prompt, field_output: completion}"], {"type": own})
    encode(RECORDS["type: completion with field: content"], {"type": "completion", "field": "content"})
    encode(RECORDS["no type"], {"type": None})


@pytest.mark.parametrize("record", [[], "a", {}, {"a": 1, "b": "c", "d": "e"}, {"text": None}])
def test_nothing_is_advised_for_what_fits_no_type(record):
    assert way_out(record, DatasetSpec(path="a", type="chat_template")) is None
