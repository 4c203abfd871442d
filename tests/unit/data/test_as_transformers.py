"""A record gives the text that transformers' apply_chat_template gives, or is refused for what is true.

Conversations of every kind, drawn by number, through templates that behave as the common families do.
"""

import copy
import json
import random
import re

import pytest

from allranks.data.chat import ChatEncoder
from allranks.data.records import RecordError
from tests.unit.data.conftest import make_tokenizer
from tests.unit.data.families import FAMILIES, unmarked

NUM_CONVERSATIONS = 30
TEXTS = ["Rome", 'say "hi"\n', " a\tb ", "日本語 é", "back\\slash", "<b>&amp;</b>", "5", "{curly}", "line\n\nline"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "does " + name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": ["string", "null"], "default": None}, "n": {"type": "integer"}},
                "required": [],
            },
        },
    }
    for name in ("weather", "reset_note")
]
ARGUMENTS = [{}, {"city": None}, {"city": 'R"o\nme', "n": 1}, {"n": 1.5e300, "deep": {"a": [None, True, "é"]}}]
RESULTS = ["21 degrees", '{"temp": 21}', "", 'a "b"\n\\c', {"temp": 21, "sky": None}, ["a", "b"], 21]


def conversation(number):
    """(messages, tools) as records have them; the tools are None where the record says nothing of tools."""
    draw = random.Random(number)
    messages = []
    if draw.random() < 0.4:
        messages.append({"role": "system", "content": draw.choice(TEXTS)})
    tools = draw.choice([None, None, None, [], TOOLS[:1], TOOLS])
    reasons = draw.random() < 0.25
    for _ in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": _said(draw)})
        if tools and draw.random() < 0.6:
            messages += _called(draw, reasons)
        messages.append(_answer(draw, reasons))
    return messages, tools


def _said(draw):
    text = draw.choice(TEXTS)
    return [{"type": "text", "text": text}, {"type": "text", "text": "more"}] if draw.random() < 0.1 else text


def _called(draw, reasons):
    calls, results = [], []
    for _ in range(draw.choice([1, 1, 2])):
        arguments = copy.deepcopy(draw.choice(ARGUMENTS))
        if draw.random() < 0.4:
            arguments = json.dumps(arguments)
        function = {"name": draw.choice(TOOLS)["function"]["name"], "arguments": arguments}
        call = {"id": f"call{len(calls):05}", "type": "function", "function": function}
        calls.append(function if draw.random() < 0.1 else call)
        results.append(
            {
                "role": "tool",
                "name": function["name"],
                "tool_call_id": f"call{len(results):05}",
                "content": draw.choice(RESULTS),
            }
        )
    message = {"role": "assistant", "content": draw.choice(["", "Let me see.", None]), "tool_calls": calls}
    if message["content"] is None and draw.random() < 0.5:
        del message["content"]
    return [message | _reasoning(draw, reasons), *results]


def _answer(draw, reasons):
    message = {"role": "assistant", "content": draw.choice(TEXTS)}
    if draw.random() < 0.1:
        message["weight"] = draw.choice([0, 1])
    return message | _reasoning(draw, reasons)


def _reasoning(draw, reasons):
    key = draw.choice(["reasoning_content", "thinking", "reasoning", None])
    return {key: draw.choice(["why", 'so "it" is'])} if key and reasons else {}


def as_transformers(tokenizer, messages, tools):
    """The text, or None where it refuses."""
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    except Exception:
        return None


def in_another_form(messages, tools):
    """What a record may become where a template cannot take it as it is: each change by itself, and all together."""

    def arguments_as(change):
        changed = copy.deepcopy(messages)
        for message in changed:
            for call in message.get("tool_calls") or []:
                function = call.get("function", call)
                function["arguments"] = change(function["arguments"])
        return changed

    parsed = arguments_as(lambda value: json.loads(value) if isinstance(value, str) else value)
    written = arguments_as(lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    for calls_in in (messages, parsed, written):
        for level in range(16):
            changed = copy.deepcopy(calls_in)
            for message in changed:
                if level & 1 and not isinstance(message.get("content", ""), str) and message["role"] == "user":
                    message["content"] = "".join(part["text"] for part in message["content"])
                if level & 2 and message.get("content") is None:
                    message["content"] = ""
                if level & 4:
                    for n, call in enumerate(message.get("tool_calls") or []):
                        if "function" not in call:
                            message["tool_calls"][n] = {"type": "function", "function": call}
                if level & 8 and message["role"] == "tool" and not isinstance(message["content"], str):
                    message["content"] = json.dumps(message["content"], ensure_ascii=False)
            yield changed, tools


def is_true(reason, tokenizer, messages, tools):
    """Whether a refusal says what can be seen in the text, or says that parts of it cannot be told apart."""
    if "tools: the record has tools" in reason:
        renamed = json.loads(json.dumps(tools).replace("weather", "sonar").replace("reset_note", "sonar"))
        # In some part of the conversation that is a sample of its own.
        texts = [as_transformers(tokenizer, messages[: n + 1], renamed) for n in range(len(messages))]
        return any("sonar" not in text for text in texts if text is not None)
    if found := re.match(r"message (\d+) \(\w+\): the chat template leaves out (its \w+|a part)", reason):
        i, what = int(found[1]), found[2]
        other = copy.deepcopy(messages[: i + 1])
        if what == "its reasoning":
            other[i] |= {key: "sonar" for key in ("reasoning", "thinking", "reasoning_content") if key in other[i]}
        elif what == "its call":
            for call in other[i]["tool_calls"]:
                call.get("function", call)["name"] = "sonar"
        else:
            other[i]["content"] = "sonar"
        text = as_transformers(tokenizer, other, tools)
        return text is None or text.count("sonar") < len(other[i]["tool_calls"] if what == "its call" else [1])
    return "cannot tell which part" in reason or "writes it into the turn before it" in reason


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make_tokenizer(bos="<s>") for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_that_of_transformers_or_the_refusal_is_true(family, make_config, tokenizers):
    tokenizer = tokenizers[family]
    tokenizer.chat_template = unmarked(FAMILIES[family])
    tokenizer.init_kwargs.pop("chat_template", None)
    cfg = make_config({"path": "x.jsonl", "type": "chat_template"}, chat_template=None)
    encoder = ChatEncoder(cfg.data.datasets[0], cfg.data, tokenizer)
    same = 0
    for number in range(NUM_CONVERSATIONS):
        messages, tools = conversation(number)
        theirs = as_transformers(tokenizer, messages, tools)
        try:
            drafts = encoder({"messages": copy.deepcopy(messages), "tools": copy.deepcopy(tools)})
        except RecordError as error:
            if theirs is None:
                continue
            assert is_true(str(error), tokenizer, messages, tools), (number, str(error), theirs)
            continue
        texts = ["".join(piece.text for piece in draft) for draft in drafts]
        starts = [messages[: n + 1] for n in range(len(messages))]  # a turn may be trained in a text that ends with it
        for text in texts:
            if text == theirs or text in {as_transformers(tokenizer, start, tools) for start in starts}:
                same += 1
                continue
            others = [chat for start in starts for chat in in_another_form(start, tools)]
            assert text in {as_transformers(tokenizer, *chat) for chat in others}, (number, text, theirs)
            # Only what transformers refuses, or writes with text escaped or as Python has it, takes another form.
            escaped = ('\\"', '"{}"', "{'")
            assert theirs is None or any(mark in theirs for mark in escaped), (number, text, theirs)
    assert same, "no conversation went through"


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_without_marks_are_those_with_marks(family, make_config, tokenizers):
    tokenizer = tokenizers[family]
    cfg = make_config({"path": "x.jsonl", "type": "chat_template"}, chat_template=None)

    def encoded(template, record):
        tokenizer.chat_template = template
        tokenizer.init_kwargs.pop("chat_template", None)
        try:
            return ChatEncoder(cfg.data.datasets[0], cfg.data, tokenizer)(copy.deepcopy(record))
        except RecordError:
            return None

    compared = 0
    for number in range(NUM_CONVERSATIONS):
        messages, tools = conversation(number)
        record = {"messages": messages, "tools": tools}
        with_marks, without = encoded(FAMILIES[family], record), encoded(unmarked(FAMILIES[family]), record)
        if with_marks is None or without is None:
            continue
        compared += 1
        assert [trained(draft) for draft in without] == [trained(draft) for draft in with_marks], number
    assert compared


def trained(draft):
    """The trained characters, joined: ranges that touch are one."""
    [piece] = draft
    learned = [False] * len(piece.text)
    for start, stop in piece.trained:
        learned[start:stop] = [True] * (stop - start)
    return "".join(character if is_learned else "\0" for character, is_learned in zip(piece.text, learned, strict=True))
