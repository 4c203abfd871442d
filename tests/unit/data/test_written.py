"""What a template wrote of a text is found, however it spells it, and what it left out is not."""

import html
import json

import markupsafe
import pytest

from allranks.data.written import is_written, not_written

TEXT = "a <b> & \"c\"\n'd' é \\"
SPELLINGS = [
    str,
    str.upper,
    lambda text: " ".join(text.split()),
    json.dumps,
    lambda text: json.dumps(text, ensure_ascii=False, indent=2),
    lambda text: json.dumps({"result": text}),
    lambda text: json.dumps(json.dumps({"result": text})),
    lambda text: json.dumps(json.dumps({"result": text}, ensure_ascii=False), ensure_ascii=False),
    repr,
    html.escape,
    lambda text: html.escape(text, quote=False),
    lambda text: str(markupsafe.escape(text)),
]


@pytest.mark.parametrize("spell", SPELLINGS)
def test_every_spelling_is_found_and_a_part_of_it_is_not_enough(spell):
    assert is_written(TEXT, f"<|user|>{spell(TEXT)}<|end|>")
    assert not is_written(TEXT, f"<|user|>{spell(TEXT[:-3])}<|end|>")
    assert not is_written(TEXT, f"<|user|>{spell(TEXT[3:])}<|end|>")


@pytest.mark.parametrize(
    ("message", "text", "lacking"),
    [
        ({"role": "user", "content": "<think>why</think>b"}, "b", "a part of '<think>why</think>b'"),
        ({"role": "assistant", "content": "<think>why</think>b"}, "[why] b", None),
        ({"role": "tool", "content": {"temp": 21.5, "sky": ["blue"]}}, "21.5 blue", None),
        ({"role": "tool", "content": {"temp": 21.5, "sky": ["blue"]}}, "21.5", "a part of 'blue'"),
        ({"role": "tool", "content": {"temp": 21.5}}, "{}", "a part of '21.5'"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]}, "[text]a", None),
        ({"role": "assistant", "content": "b", "reasoning": "why"}, "b", "its reasoning (reasoning) 'why'"),
        ({"role": "assistant", "tool_calls": [{"name": "f"}]}, "g()", "its call of f"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "f()", None),
    ],
)
def test_what_a_text_lacks_of_a_message_is_named(message, text, lacking):
    assert not_written(message, text, ("reasoning",)) == lacking
