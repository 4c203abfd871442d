import pytest

from allranks.data.templates import pin_dates, template_names, template_text
from allranks.errors import DataError
from tests.unit.data.conftest import make_tokenizer

PAIR = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"),
        (
            "llama3",
            "<s><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>",
        ),
        ("gemma", "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyo<end_of_turn>\n"),
        ("phi_3", "<|user|>\n hi <|end|>\n<|assistant|>\nyo<|end|>\n"),
        ("alpaca", "<s>### Instruction:\n hi \n\n### Response:\nyo<|im_end|>"),
    ],
)
def test_templates_by_hand(name, text):
    tokenizer = make_tokenizer(bos="<s>")
    tokenizer.chat_template = template_text(name, None, tokenizer)
    assert tokenizer.apply_chat_template(PAIR, tokenize=False) == text
    asked = tokenizer.apply_chat_template(PAIR[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(asked) and text[len(asked) :].startswith("yo")


def test_every_template_is_tested():
    assert template_names() == ["alpaca", "chatml", "gemma", "llama3", "phi_3"]


def test_where_a_template_comes_from(tmp_path):
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match="no chat template of its own: set chat_template to one of alpaca, chatml"):
        template_text("tokenizer_default", None, tokenizer)
    assert template_text("tokenizer_default_fallback_chatml", None, tokenizer) == template_text(
        "chatml", None, tokenizer
    )
    tokenizer.chat_template = "{{ messages }}"
    for name in (None, "tokenizer_default", "tokenizer_default_fallback_chatml"):
        assert template_text(name, None, tokenizer) == "{{ messages }}"
    (tmp_path / "own.jinja").write_text("{{ 1 }}")
    assert template_text("jinja", str(tmp_path / "own.jinja"), tokenizer) == "{{ 1 }}"
    assert template_text("jinja", "{{ 2 }}", tokenizer) == template_text(None, "{{ 2 }}", tokenizer) == "{{ 2 }}"


@pytest.mark.parametrize(
    ("name", "jinja", "message"),
    [
        ("qwen_25", None, "'qwen_25' does not come with allranks, .* tokenizer_default"),
        ("jinja", None, "needs chat_template_jinja"),
        ("jinja", "no/such/file", "neither a template .* nor an existing file"),
        ("chatml", "{{ 1 }}", "needs chat_template: jinja, but it is chatml"),
    ],
)
def test_templates_that_do_not_exist(name, jinja, message):
    with pytest.raises(DataError, match=message):
        template_text(name, jinja, make_tokenizer())


def test_todays_date_is_the_same_on_every_day():
    template = '{%- if strftime_now is defined %}{{ strftime_now("%d %b %Y") }}{% endif %}'
    assert "01 Jan 2025" in pin_dates(template) and "strftime_now(" not in pin_dates(template)
