"""How records of conversations are read, before any template."""

import pytest

from allranks.config.sections.data import DatasetSpec
from allranks.data.conversations import ConversationFormat
from allranks.data.records import RecordError

PAIR = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def read(record, default_system=None, **spec):
    return ConversationFormat(DatasetSpec(path="x", type="chat_template", **spec), default_system).read(record)


@pytest.mark.parametrize("field", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize(("role", "content", "names"), [("role", "content", PAIR), ("from", "value", ["human", "gpt"])])
def test_fields_are_found_by_themselves(field, role, content, names):
    user, assistant = ("user", "assistant") if names is PAIR else names
    record = {field: [{role: user, content: "a"}, {role: assistant, content: "b"}]}
    assert read(record).messages == PAIR


def test_fields_by_mapping():
    record = {"log": [{"who": "me", "says": "a", "why": "x"}, {"who": "you", "says": "b"}]}
    found = read(
        record,
        field_messages="log",
        message_property_mappings={"role": "who", "content": "says", "reasoning_content": "why"},
        roles={"user": ["me"], "assistant": ["you"]},
    )
    assert found.messages == [PAIR[0] | {"reasoning_content": "x"}, PAIR[1]]


def test_messages_as_json_text_as_in_csv():
    assert (
        read({"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'}).messages == PAIR
    )


def test_messages_are_as_the_record_has_them():
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"name": "f", "arguments": {"x": 1, "y": None}}
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "tool_calls": [call], "reasoning": "why"},
        {"role": "tool", "name": "f", "content": {"temp": None}},
    ]
    found = read({"messages": [messages[0], messages[1] | {"content": None}, messages[2]], "tools": []})
    assert found.messages == messages and found.tools == []
    assert read({"messages": messages, "tools": None}).tools is None


def test_a_weight_of_0_leaves_a_turn_out_and_others_than_0_and_1_are_refused():
    def messages(weight):
        return {"messages": [PAIR[0], PAIR[1] | {"weight": weight}]}

    assert [read(messages(weight)).train for weight in (0, 1, None)] == [[None, False], [None, None], [None, None]]
    with pytest.raises(RecordError, match=r"message 1, weight: a turn is trained \(1\) or not \(0\), found 0.5"):
        read(messages(0.5))
    assert read(messages(0.5), message_field_training="learn").train == [None, None]


def test_system_messages():
    system = {"role": "system", "content": "s"}
    assert read({"messages": PAIR, "system": "s"}).messages == [system, *PAIR]
    assert read({"messages": PAIR, "sys": "s"}, field_system="sys").messages == [system, *PAIR]
    assert read({"messages": PAIR}, default_system="s").messages == [system, *PAIR]
    assert read({"messages": [system, *PAIR]}, default_system="t").messages == [system, *PAIR]
    assert read({"messages": [system, *PAIR], "system": "t"}, drop_system_message=True).messages == PAIR


def test_reasoning_is_split_off():
    message = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nb"}
    found = read({"messages": [PAIR[0], message]}, split_thinking=True, template_thinking_key="thinking")
    assert found.messages[1] == {"role": "assistant", "content": "b", "thinking": "why"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1, 2], "expected an object with a list of messages, found \\[1, 2\\]"),
        ({"text": "a"}, "no field messages or conversations or conversation; it has text"),
        ({"messages": []}, "field messages: expected a list of messages with at least one, found \\[\\]"),
        ({"messages": {"role": "user"}}, "field messages: expected a list"),
        ({"messages": ["a"]}, "field messages, message 0: expected an object, found 'a'"),
        ({"messages": [{"content": "a"}]}, "message 0: no property role or from"),
        ({"messages": [{"role": "usr", "content": "a"}]}, "message 0: role 'usr' is not known"),
        ({"messages": [{"role": 3, "content": "a"}]}, "message 0: role 3 is not known"),
        ({"messages": [*PAIR, {"role": "user"}]}, "message 2: no property content or value"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 0, content: expected text, found 5"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "found parts of type image"),
        ({"messages": PAIR, "system": 3}, "field system: expected text, found 3"),
        ({"messages": PAIR, "tools": "[{"}, "field tools: not valid JSON"),
        ({"messages": PAIR, "tools": [{"x": 1}]}, "field tools: expected function schemas with a name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"x": 1}]}]}, "tool_calls: expected a call as"),
    ],
)
def test_broken_records_name_field_and_place(record, message):
    with pytest.raises(RecordError, match=message):
        read(record)
