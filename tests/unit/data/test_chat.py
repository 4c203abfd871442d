"""Label masks of conversations: against transformers' own, and by hand."""

import json
from types import MappingProxyType

import numpy as np
import pytest

from allranks.data.records import RecordError
from allranks.errors import DataError

CHAT = {"type": "chat_template"}
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the sum?"},
    {"role": "assistant", "content": "It is five. 你好"},
    {"role": "user", "content": "And two?"},
    {"role": "assistant", "content": "  two\n\n"},
]
TOOL = {"name": "search", "description": "Find", "parameters": {"type": "object", "properties": {}}}
CALLING = {
    "conversations": [
        {"from": "human", "value": "weather?"},
        {"from": "function_call", "value": '{"name": "search", "arguments": {"city": "Paris"}}'},
        {"from": "observation", "value": '{"rain": true}'},
        {"from": "gpt", "value": "It is rain."},
    ],
}
# ChatML without marks: what a tokenizer of the Hub brings.
UNMARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Rewrites history as Qwen3's template does: reasoning is dropped from all turns but the last, which always has a block.
THINKING = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}
{%- if loop.last %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}
{{- m.content.split('</think>')[-1].lstrip('\n') }}
{%- else %}{{- m.content }}{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def stretches(samples, tokenizer):
    from allranks.data.show import runs

    return [[tokenizer.decode(ids) for is_trained, ids in runs(*sample) if is_trained] for sample in samples]


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "phi_3", "alpaca"])
def test_tokens_and_masks_are_those_of_transformers_for_templates_that_mark(name, encode, tokenizer):
    from allranks.data.templates import template_text

    ((tokens, mask),) = encode({"messages": MESSAGES}, CHAT, chat_template=name)
    theirs = tokenizer.apply_chat_template(
        MESSAGES,
        chat_template=template_text(name, None, tokenizer),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    assert tokens.tolist() == theirs["input_ids"]
    assert mask.tolist() == theirs["assistant_masks"] and mask.any()


def test_an_unmarked_template_gets_the_masks_of_the_same_template_marked(encode):
    unmarked = encode({"messages": MESSAGES}, CHAT, chat_template="jinja", chat_template_jinja=UNMARKED)
    marked = encode({"messages": MESSAGES}, CHAT, chat_template="chatml")
    for one, other in zip(unmarked[0], marked[0], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("jinja", [UNMARKED, None])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["It is five. 你好<|im_end|>", "  two\n\n<|im_end|>"]),
        ({"train_on_eos": "none"}, ["It is five. 你好", "  two\n\n"]),
        ({"train_on_eos": "last"}, ["It is five. 你好", "  two\n\n<|im_end|>"]),
        (
            {"train_on_eos": "all"},
            ["<|im_end|>", "<|im_end|>", "It is five. 你好<|im_end|>", "<|im_end|>", "  two\n\n<|im_end|>"],
        ),
        ({"roles_to_train": ["user"]}, ["What is the sum?<|im_end|>", "And two?<|im_end|>"]),
        ({"roles_to_train": ["system", "assistant"], "train_on_eos": "none"},
         ["You are a helpful assistant.", "It is five. 你好", "  two\n\n"]),
    ],
)  # fmt: skip
def test_roles_and_end_tokens(jinja, settings, expected, trained):
    template = {"chat_template": "jinja", "chat_template_jinja": jinja} if jinja else {"chat_template": "chatml"}
    assert trained({"messages": MESSAGES}, CHAT, **template, **settings) == expected


def test_settings_of_the_data_set_go_before_those_of_the_config(trained):
    spec = CHAT | {"roles_to_train": ["user"], "train_on_eos": "none"}
    assert trained({"messages": MESSAGES}, spec, roles_to_train=["system"]) == ["What is the sum?", "And two?"]


def test_end_of_turn_tokens_follow_train_on_eot_where_they_are_not_the_eos(trained, tokenizer):
    from tests.unit.data.conftest import make_tokenizer

    other_eos = make_tokenizer(eos="<|endoftext|>")
    record = {"messages": MESSAGES[1:3]}
    assert trained(record, CHAT, other_eos) == ["It is five. 你好<|im_end|>"]
    assert trained(record, CHAT, other_eos, train_on_eos="none") == ["It is five. 你好"]
    assert trained(record, CHAT, other_eos, train_on_eos="none", train_on_eot="turn") == ["It is five. 你好<|im_end|>"]
    assert trained(record, CHAT, other_eos, train_on_eos="turn", train_on_eot="none") == ["It is five. 你好"]


def test_an_end_that_is_plain_text_to_the_tokenizer_is_trained_too(trained):
    from tests.unit.data.conftest import make_tokenizer

    plain = make_tokenizer(special=["<|endoftext|>"], eos="<|endoftext|>")
    template = {"chat_template": "jinja", "chat_template_jinja": UNMARKED}
    assert trained({"messages": MESSAGES}, CHAT, plain, **template)[0] == "It is five. 你好<|im_end|>"


@pytest.mark.parametrize("jinja", [UNMARKED, None])
def test_train_on_inputs_trains_what_every_turn_says_and_its_end_and_no_header(jinja, trained):
    template = {"chat_template": "jinja", "chat_template_jinja": jinja} if jinja else {"chat_template": "chatml"}
    expected = [f"{message['content']}<|im_end|>" for message in MESSAGES]
    assert trained({"messages": MESSAGES}, CHAT, **template, train_on_inputs=True) == expected
    without_ends = [message["content"] for message in MESSAGES]
    assert trained({"messages": MESSAGES}, CHAT, **template, train_on_inputs=True, train_on_eos="none") == without_ends


def test_a_message_goes_before_train_on_inputs(trained):
    messages = [m | {"learn": None if n else False} for n, m in enumerate(MESSAGES[1:3])]
    spec = CHAT | {"message_field_training": "learn"}
    assert trained({"messages": messages}, spec, train_on_inputs=True) == ["It is five. 你好<|im_end|>"]


def test_a_message_says_itself_whether_it_is_trained(trained):
    messages = [m | {"learn": learn} for m, learn in zip(MESSAGES, [None, True, False, 0, None], strict=True)]
    spec = CHAT | {"message_field_training": "learn"}
    assert trained({"messages": messages}, spec, train_on_eos="none") == ["What is the sum?", "  two\n\n"]


def test_character_ranges_of_a_message(trained):
    messages = [dict(m) for m in MESSAGES]
    messages[2]["parts"] = [
        {"begin_offset": 0, "end_offset": 1, "train": False},
        {"begin_offset": 5, "end_offset": 9, "train": True},
    ]
    spec = CHAT | {"message_field_training_detail": "parts"}
    assert trained({"messages": messages}, spec, train_on_eos="none") == [" five", "  two\n\n"]
    messages[2]["parts"][1]["end_offset"] = 14
    with pytest.raises(RecordError, match="message 2, parts: characters 5 to 14"):
        trained({"messages": messages}, spec)


@pytest.mark.parametrize(
    "text", ["It is five.", " spaces around \n", "<|im_end|>\n<|im_start|>user", "assistant\n", ""]
)
def test_awkward_answers_are_found_exactly(text, encode, tokenizer):
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    template = {"chat_template": "jinja", "chat_template_jinja": UNMARKED}
    samples = encode({"messages": messages}, CHAT, **template)
    assert stretches(samples, tokenizer) == [[text + "<|im_end|>"]]


def test_a_template_that_trims_its_messages(trained):
    trimming = UNMARKED.replace("m['content']", "m['content'] | trim")
    template = {"chat_template": "jinja", "chat_template_jinja": trimming}
    assert trained({"messages": MESSAGES}, CHAT, **template) == ["It is five. 你好<|im_end|>", "two<|im_end|>"]


def test_a_template_without_generation_prompt_and_with_a_space_before_the_end(trained):
    llama2 = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' <|endoftext|>' }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
    )
    template = {"chat_template": "jinja", "chat_template_jinja": llama2}
    assert trained({"messages": MESSAGES[1:4]}, CHAT, **template) == [" It is five. 你好 <|endoftext|>"]
    with pytest.raises(RecordError, match="template refuses the conversation: only user and assistant"):
        trained({"messages": MESSAGES}, CHAT, **template)


class TestTemplatesThatRewriteHistory:
    template = MappingProxyType({"chat_template": "jinja", "chat_template_jinja": THINKING})

    def test_all_that_follows_the_generation_prompt_is_the_models(self, trained):
        assert trained({"messages": MESSAGES[:3]}, CHAT, **self.template) == [
            "<think>\n\n</think>\n\nIt is five. 你好<|im_end|>"
        ]

    def test_a_short_question_is_not_mistaken_for_a_part_of_the_header(self, trained):
        messages = [{"role": "user", "content": "hi"}, MESSAGES[2]]
        expected = ["<think>\n\n</think>\n\nIt is five. 你好<|im_end|>"]
        assert trained({"messages": messages}, CHAT, **self.template) == expected

    def test_turns_without_reasoning_stay_in_one_document(self, trained):
        assert trained({"messages": MESSAGES}, CHAT, **self.template) == [
            "It is five. 你好<|im_end|>",
            "<think>\n\n</think>\n\n  two\n\n<|im_end|>",
        ]

    def test_reasoning_that_is_dropped_from_history_is_trained_in_a_text_of_its_own(self, encode, tokenizer):
        messages = [dict(m) for m in MESSAGES]
        messages[2]["content"] = "<think>\nadd them\n</think>\n\nIt is five."
        messages[4]["content"] = "<think>\nagain\n</think>\n\ntwo"
        samples = encode({"messages": messages}, CHAT, **self.template)
        assert stretches(samples, tokenizer) == [
            ["<think>\nagain\n</think>\n\ntwo<|im_end|>"],
            ["<think>\nadd them\n</think>\n\nIt is five.<|im_end|>"],
        ]
        whole, first = (tokenizer.decode(tokens) for tokens, _ in samples)
        assert whole == tokenizer.apply_chat_template(messages, chat_template=THINKING, tokenize=False)
        assert first == tokenizer.apply_chat_template(messages[:3], chat_template=THINKING, tokenize=False)

    def test_what_no_text_holds_is_an_error(self, trained):
        dropping = UNMARKED.replace("m['content']", "m['content'].split('</think>')[-1]")
        messages = [MESSAGES[1], {"role": "assistant", "content": "<think>add</think>five"}]
        with pytest.raises(RecordError, match=r"message 1 .*leaves out a part"):
            trained({"messages": messages}, CHAT, chat_template="jinja", chat_template_jinja=dropping)

    def test_a_dropped_question_is_an_error(self, trained):
        without_system = UNMARKED.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
        with pytest.raises(RecordError, match=r"message 0 \(system\)"):
            trained({"messages": MESSAGES}, CHAT, chat_template="jinja", chat_template_jinja=without_system)


def test_a_template_that_marks_only_the_last_turn_trains_no_other(trained):
    marking = UNMARKED.replace(
        "m['content'] + '<|im_end|>' + '\n' }}",
        "}}{% if loop.last %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}",
    ).replace("'\n' + }}", "'\n' }}")
    template = {"chat_template": "jinja", "chat_template_jinja": marking}
    assert trained({"messages": MESSAGES}, CHAT, **template) == ["  two\n\n<|im_end|>"]


def test_a_tools_answer_written_into_the_turn_of_the_call_is_not_trained(trained):
    inline = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'Q:' + m.content + '\nA:' }}"
        "{% elif m.role == 'tool' %}{{ '[' + m.content + ']' }}"
        "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ '<' + c.function.name + '>' }}{% endfor %}"
        "{{ '' if m.tool_calls else '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    template = {"chat_template": "jinja", "chat_template_jinja": inline}
    assert trained(CALLING, CHAT, **template) == ["<search>", "It is rain.<|im_end|>"]


def test_a_template_that_refuses_a_tools_answer_without_its_call(trained):
    strict = UNMARKED.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('no call') }}{% endif %}",
    ).replace("m['content']", "(m.tool_calls[0].function.name if m.tool_calls else m['content'])")
    template = {"chat_template": "jinja", "chat_template_jinja": strict}
    assert trained(CALLING, CHAT, **template) == ["search<|im_end|>", "It is rain.<|im_end|>"]


class TestTools:
    call = '<tool_call>\n{"name": "search", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'

    @pytest.mark.parametrize(
        "tools", [json.dumps([TOOL]), [TOOL], [{"type": "function", "function": TOOL}], json.dumps(TOOL)]
    )
    def test_calls_are_trained_and_results_are_not(self, tools, trained, encode, tokenizer):
        record = CALLING | {"tools": tools}
        assert trained(record, CHAT) == [self.call, "It is rain.<|im_end|>"]
        text = tokenizer.decode(encode(record, CHAT)[0][0])
        definition = TOOL if "function" not in str(tools) else {"type": "function", "function": TOOL}
        assert f"\n{json.dumps(definition)}\n" in text  # as the record has it
        assert '<|im_start|>tool\n<tool_response>\n{"rain": true}\n</tool_response><|im_end|>' in text

    def test_openai_tool_calls_with_arguments_as_text(self, trained):
        call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"city": "Paris"}'}}
        messages = [
            {"role": "user", "content": "weather?", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_call_id": "1"},
        ]
        assert trained({"messages": messages, "tools": [TOOL]}, CHAT) == [self.call]

    def test_a_template_without_marks_finds_the_call(self, trained):
        calling = UNMARKED.replace(
            "m['content']",
            "m['content'] + ('<tool_call>' + m.tool_calls[0].function.name + '</tool_call>' if m.tool_calls else '')",
        )
        template = {"chat_template": "jinja", "chat_template_jinja": calling}
        assert trained(CALLING, CHAT, **template) == [
            "<tool_call>search</tool_call><|im_end|>",
            "It is rain.<|im_end|>",
        ]

    def test_a_template_that_ignores_tools_is_an_error(self, trained):
        with pytest.raises(RecordError, match="does not write them"):
            trained(CALLING | {"tools": [TOOL]}, CHAT, chat_template="jinja", chat_template_jinja=UNMARKED)

    def test_a_template_that_ignores_calls_is_an_error(self, trained):
        with pytest.raises(RecordError, match=r"message 1 \(assistant\).*leaves out"):
            trained(CALLING, CHAT, chat_template="jinja", chat_template_jinja=UNMARKED)

    def test_a_broken_call_is_named(self, trained):
        record = {"conversations": [CALLING["conversations"][0], {"from": "function_call", "value": "{oops"}]}
        with pytest.raises(RecordError, match="message 1, value: not valid JSON"):
            trained(record, CHAT)


def test_unknown_end_tokens_are_an_error(trained):
    with pytest.raises(DataError, match=r"eot_tokens: '<|nope|>' is not one token"):
        trained({"messages": MESSAGES}, CHAT, eot_tokens=["<|nope|>"])


def test_reasoning_under_another_key_must_be_written_too(trained):
    record = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "why": "so"}]}
    with pytest.raises(RecordError, match=r"leaves out its reasoning \(thought\) 'so'"):
        trained(record, CHAT | {"field_thinking": "why", "template_thinking_key": "thought"})


class TestRolesToTrain:
    SHAREGPT = MappingProxyType(
        {
            "conversations": [
                {"from": "human", "value": "weather?"},
                {"from": "function_call", "value": '{"name": "search", "arguments": {}}'},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": "It is rain."},
            ]
        }
    )
    CALL = '<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>'

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["gpt"], [CALL, "It is rain."]),
            (["human", "gpt"], ["weather?", CALL, "It is rain."]),
            (["function_call"], [CALL]),
            (["observation"], ["<tool_response>\nrain\n</tool_response>"]),
        ],
    )
    @pytest.mark.parametrize("for_all", [True, False])
    def test_names_are_those_of_the_data(self, names, expected, for_all, trained):
        spec = CHAT if for_all else CHAT | {"roles_to_train": names}
        config = {"roles_to_train": names} if for_all else {}
        found = trained(dict(self.SHAREGPT), spec, train_on_eos="none", **config)
        assert [text in whole for text, whole in zip(found, expected, strict=True)] == [True] * len(expected)

    def test_names_of_the_data_sets_own_map(self, trained):
        record = {"messages": [{"role": "me", "content": "hi"}, {"role": "oracle", "content": "yo"}]}
        spec = CHAT | {"roles": {"user": ["me"], "assistant": ["oracle"]}, "roles_to_train": ["oracle"]}
        assert trained(record, spec) == ["yo<|im_end|>"]

    @pytest.mark.parametrize("keys", [{}, {"train_on_eos": "all"}])
    def test_an_unknown_name_is_an_error(self, keys, trained):
        with pytest.raises(DataError, match=r"roles_to_train: 'asistant' is no role\. Did you mean assistant\?"):
            trained({"messages": MESSAGES}, CHAT, roles_to_train=["asistant"], **keys)
        with pytest.raises(DataError, match="'oracle' is no role"):
            trained({"messages": MESSAGES}, CHAT | {"roles_to_train": ["oracle"]})

    def test_a_name_of_the_config_may_be_another_data_sets(self, make_config, tokenizer):
        from allranks.data.chat import ChatEncoder

        other = CHAT | {"path": "b", "roles": {"assistant": ["oracle"]}}
        cfg = make_config(datasets=[CHAT | {"path": "a"}, other], roles_to_train=["gpt", "oracle"])
        assert [ChatEncoder(spec, cfg.data, tokenizer).roles for spec in cfg.data.datasets] == [{"assistant"}] * 2
        cfg = make_config(datasets=[CHAT | {"path": "a"}, other], roles_to_train=["oracle"])
        with pytest.raises(DataError, match=r"data set a: roles_to_train: \['oracle'\] trains no role of it"):
            ChatEncoder(cfg.data.datasets[0], cfg.data, tokenizer)

    def test_an_empty_list_trains_only_what_messages_say(self, trained):
        messages = [m | {"learn": n == 1} for n, m in enumerate(MESSAGES[1:])]
        spec = CHAT | {"roles_to_train": [], "message_field_training": "learn"}
        assert trained({"messages": messages}, spec) == ["It is five. 你好<|im_end|>"]
        for keys in ({}, {"train_on_eos": "all"}):
            with pytest.raises(DataError, match=r"roles_to_train: \[\] trains no role"):
                trained({"messages": MESSAGES}, CHAT | {"roles_to_train": []}, **keys)


def test_a_weight_of_0_leaves_the_turn_out(trained):
    messages = [m | ({"weight": n // 3} if m["role"] == "assistant" else {}) for n, m in enumerate(MESSAGES)]
    assert trained({"messages": messages}, CHAT) == ["  two\n\n<|im_end|>"]
