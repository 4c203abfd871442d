"""What ends a turn in the trained text is trained, whole, and known to what is exported; or there is a warning."""

import pytest

from allranks.data.stops import trained_stops
from allranks.data.templates import template_names
from tests.unit.data.conftest import make_tokenizer

CHAT = {"path": "chat.jsonl", "type": "chat_template"}
PAIR = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "three"}]
# GLM's way: nothing ends a turn but the header of the next.
HEADERS = (
    "{%- for m in messages %}{{- '<|' + m.role + '|>\n' + m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
TWO_ENDS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|><|endoftext|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + ' ###\n' }}{% endfor %}"


def stops_of(make_config, tokenizer, *datasets, **keys):
    return trained_stops(make_config(datasets=[CHAT, *datasets], **keys), tokenizer)


def test_a_base_model_with_chatml_stops_at_the_end_of_its_turns(make_config):
    tokenizer = make_tokenizer(eos="<|endoftext|>")
    found = stops_of(make_config, tokenizer, chat_template="chatml")
    assert (found.tokens, found.only, found.warnings) == (["<|im_end|>"], True, [])
    texts = {"path": "texts.jsonl", "type": "completion"}
    assert not stops_of(make_config, tokenizer, texts, chat_template="chatml").only


def test_the_tokenizers_own_end_stays_its_end(make_config, tokenizer):
    found = stops_of(make_config, tokenizer, chat_template="chatml")
    assert (found.tokens, found.only) == (["<|im_end|>"], False)


def test_both_of_two_ends_are_trained_and_known(make_config, encode, tokenizer):
    keys = {"chat_template": "jinja", "chat_template_jinja": TWO_ENDS}
    assert stops_of(make_config, tokenizer, **keys).tokens == ["<|im_end|>", "<|endoftext|>"]
    ((tokens, mask),) = encode({"messages": PAIR + PAIR}, {"type": "chat_template"}, **keys)
    trained = tokenizer.decode([token for token, is_trained in zip(tokens, mask, strict=True) if is_trained])
    assert trained == "three<|im_end|><|endoftext|>" * 2


@pytest.fixture
def headers():
    return make_tokenizer(special=("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"), eos="<|endoftext|>")


def test_a_header_that_stops_is_warned_of_with_the_key_and_with_it_trained_behind_the_last_turn(make_config, headers):
    from allranks.data.chat import ChatEncoder

    keys = {"chat_template": "jinja", "chat_template_jinja": HEADERS}
    [warning] = stops_of(make_config, headers, **keys).warnings
    assert "chat.jsonl" in warning and "set eot_tokens: ['<|user|>']" in warning
    config = make_config(datasets=[CHAT], **keys, eot_tokens=["<|user|>"])
    assert trained_stops(config, headers).tokens == ["<|user|>"] and not trained_stops(config, headers).warnings
    for messages in (PAIR, PAIR + PAIR):
        [[piece]] = ChatEncoder(config.data.datasets[0], config.data, headers)({"messages": messages})
        written = [piece.text[start:stop] for start, stop in piece.trained]
        assert "".join(written) == "\nthree<|user|>" * (len(messages) // 2)


def test_an_end_that_is_no_token_or_not_trained_is_warned_of(make_config, tokenizer):
    [warning] = stops_of(make_config, tokenizer, chat_template="jinja", chat_template_jinja=PLAIN).warnings
    assert "'###', is not one token" in warning
    [warning] = stops_of(make_config, tokenizer, chat_template="chatml", train_on_eos="none").warnings
    assert "'<|im_end|>' ends its turns and is not trained" in warning


@pytest.mark.parametrize("name", template_names())
def test_each_template_has_a_stop_that_is_one_token_or_a_warning(name, make_config, tokenizer):
    found = stops_of(make_config, tokenizer, chat_template=name)
    assert bool(found.tokens) != bool(found.warnings)
