"""A record goes to the template as it is; only what the template cannot take so takes another form."""

import json

import pytest

from allranks.data import prepare
from allranks.data.records import RecordError
from allranks.errors import DataError
from tests.unit.data.conftest import make_tokenizer
from tests.unit.data.families import FAMILIES, unmarked

CHAT = {"type": "chat_template"}
TOOL = {"name": "reset", "parameters": {"properties": {"value": {"default": None}}}}


def messages(arguments, **call):
    function = {"name": "reset", "arguments": arguments}
    return [
        {"role": "user", "content": "clear"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function, **call}]},
        {"role": "tool", "content": '{"done": true}'},
        {"role": "assistant", "content": "Done."},
    ]


@pytest.fixture
def text(encode, tokenizer):
    def text(template, record, **keys):
        ((tokens, _),) = encode(record, CHAT, chat_template="jinja", chat_template_jinja=template, **keys)
        return tokenizer.decode(tokens)

    return text


# What a call's arguments become: where the template writes objects, takes text or object, adds text to text.
OBJECTS = "{{ call.arguments | tojson }}"
EITHER = "{{ call.arguments if call.arguments is string else call.arguments | tojson }}"
TEXTS = "{{ '' + call.arguments }}"


@pytest.mark.parametrize(
    ("arguments", "template", "written"),
    [
        ('{"x": 1.50, "y": null}', OBJECTS, '{"x": 1.5, "y": null}'),
        ('{"x": 1.50, "y": null}', EITHER, '{"x": 1.50, "y": null}'),
        ('{"x": 1.50, "y": null}', TEXTS, '{"x": 1.50, "y": null}'),
        ({"x": None}, OBJECTS, '{"x": null}'),
        ({"x": None}, EITHER, '{"x": null}'),
        ({"x": None}, TEXTS, '{"x": null}'),
        ("", OBJECTS, "{}"),
        ("", EITHER, "{}"),
        ("", TEXTS, ""),
        ("no JSON", EITHER, "no JSON"),
    ],
)
def test_arguments_stay_as_they_are_where_the_template_takes_them(arguments, template, written, text):
    calling = (
        "{% for m in messages %}{{ m.role + ':' + m.content }}{% for call in m.tool_calls or [] %}"
        "{% set call = call.function %}{{ '!' + call.name + '(' }}" + template + "{{ ')' }}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}"
    )
    assert f"!reset({written})" in text(calling, {"messages": messages(arguments)})


def test_text_that_is_no_json_is_refused_only_where_an_object_is_needed(text):
    with pytest.raises(RecordError, match=r"message 1, arguments of reset: not valid JSON .*: 'no JSON'"):
        text(unmarked(FAMILIES["coder"]), {"messages": messages("no JSON")})


def test_nulls_of_calls_and_definitions_are_kept(text):
    record = {"messages": messages('{"value": null}'), "tools": [{"type": "function", "function": TOOL}]}
    written = text(unmarked(FAMILIES["qwen_thinking"]), record)
    assert '"default": null' in written and '"arguments": {"value": null}' in written


def test_definitions_and_calls_are_wrapped_only_for_a_template_that_needs_it(text):
    flat = [{"name": "reset", "arguments": {}}]
    record = {
        "messages": [*messages({})[:1], {"role": "assistant", "content": "", "tool_calls": flat}],
        "tools": [TOOL],
    }
    assert json.dumps(TOOL) in text(unmarked(FAMILIES["qwen"]), record)
    assert "Environment: reset\n" in text(unmarked(FAMILIES["lists"]), record)


def test_parameters_as_text_are_no_text_in_a_definition(text):
    as_text = {"type": "function", "function": TOOL | {"parameters": json.dumps(TOOL["parameters"])}}
    written = text(unmarked(FAMILIES["qwen"]), {"messages": messages({}), "tools": [as_text]})
    assert json.dumps({"type": "function", "function": TOOL}) in written


def test_parts_stay_parts_where_the_template_takes_them(text):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    record = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]}
    assert "[text]a[text]b<|im_end|>" in text(unmarked(FAMILIES["parts"]), record)
    assert "ab<|im_end|>" in text(unmarked(FAMILIES["chatml"]), record)


@pytest.mark.parametrize("result", ['{"temp": 21}', {"temp": 21}, 'say "hi"\n'])
def test_results_that_a_template_escapes_or_writes_as_json_are_found(result, trained):
    said = messages({})
    said[2]["content"] = result
    escaping = unmarked(FAMILIES["llama3"])
    keys = {"chat_template": "jinja", "chat_template_jinja": escaping}
    assert trained({"messages": said}, CHAT, **keys) == ['{"name": "reset", "parameters": {}}<|eom|>', "Done.<|eot|>"]


class TestSeveralTemplatesInOneTokenizer:
    TEMPLATES = unmarked(FAMILIES["cohere"])

    @pytest.fixture
    def encoder(self, make_config):
        def encoder(templates, **keys):
            from allranks.data.chat import ChatEncoder

            tokenizer = make_tokenizer(bos="<s>")
            tokenizer.chat_template = templates
            cfg = make_config({"path": "x.jsonl"} | CHAT, chat_template=None, **keys)
            return ChatEncoder(cfg.data.datasets[0], cfg.data, tokenizer), tokenizer

        return encoder

    @pytest.mark.parametrize("tools", [None, [], [{"type": "function", "function": TOOL}]])
    @pytest.mark.parametrize("name", [None, "tokenizer_default", "tokenizer_default_fallback_chatml"])
    def test_the_one_that_transformers_takes(self, tools, name, encoder):
        encode, tokenizer = encoder(self.TEMPLATES)
        said = messages({}) if tools else [messages({})[0], messages({})[3]]
        [[piece]] = encode({"messages": said, "tools": tools})
        assert piece.text == tokenizer.apply_chat_template(said, tools=tools, tokenize=False)
        assert [piece.text[slice(*end)] for end in piece.trained][-1] == "<E>"

    def test_without_a_default_a_conversation_without_tools_is_refused(self, encoder):
        encode, _ = encoder({"tool_use": self.TEMPLATES["tool_use"], "rag": "x"})
        assert encode({"messages": messages({}), "tools": [{"type": "function", "function": TOOL}]})
        with pytest.raises(RecordError, match="no default chat template for it, only tool_use, rag: set chat_template"):
            encode({"messages": messages({})})

    def test_one_may_be_named_and_all_are_exported(self, make_config, tmp_path):
        from allranks.data import load_tokenizer
        from allranks.data.fingerprint import fingerprint
        from allranks.data.templates import template_text
        from tests.unit.data.conftest import save_model_folder

        tokenizer = make_tokenizer(bos="<s>")
        tokenizer.chat_template = self.TEMPLATES
        folder = save_model_folder(tmp_path / "model", tokenizer)
        pair = [messages({})[0], messages({})[3]]
        (tmp_path / "x.jsonl").write_text(json.dumps({"messages": pair}))
        data = {"path": str(tmp_path / "x.jsonl")} | CHAT
        cfg = make_config(data, base_model=str(folder), chat_template="tokenizer_default")
        loaded = load_tokenizer(cfg)
        assert loaded.chat_template == self.TEMPLATES
        assert template_text("tool_use", None, loaded) == self.TEMPLATES["tool_use"]
        named = make_config(data, base_model=str(folder), chat_template="tool_use")
        with pytest.raises(DataError, match="'NoneType' object is not iterable"):  # a template for tools alone
            prepare(named)
        (tmp_path / "x.jsonl").write_text(json.dumps({"messages": pair, "tools": []}))
        blocks = prepare(named).train
        text = tokenizer.apply_chat_template(pair, tools=[], tokenize=False)
        assert tokenizer.decode(blocks.document(0)[0]) == text
        before = fingerprint(cfg)
        [other] = folder.glob("additional_chat_templates/*.jinja")
        other.write_text("another")
        assert fingerprint(cfg) != before
