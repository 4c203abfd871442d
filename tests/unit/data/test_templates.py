from datetime import datetime

import pytest

from allranks.data import load_tokenizer
from allranks.data.records import RecordError
from allranks.data.templates import named_template_text, template_names, template_text
from allranks.data.turn_formats import TURN_FORMATS, jinja_of
from allranks.data.turns import ChatTemplate
from allranks.errors import DataError
from tests.unit.data.conftest import make_tokenizer, save_model_folder

USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"

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
        ("gemma3", "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyo<end_of_turn>\n"),
        ("gemma3n", "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyo<end_of_turn>\n"),
        ("deepseek_v2", f"<s>{USER} hi {ASSISTANT}yo<|im_end|>"),
        ("deepseek_v3", f"<s>{USER} hi {ASSISTANT}yo<\uff5cend\u2581of\u2581sentence\uff5c>"),
        ("exaone", "[|system|][|endofturn|]\n[|user|] hi \n[|assistant|]yo[|endofturn|]\n"),
        ("falcon_h1", "<s><|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"),
        ("jamba", "<s><|bom|><|system|> <|eom|><|bom|><|user|>  hi <|eom|><|bom|><|assistant|> yo<|eom|>"),
        (
            "llama4",
            "<s><|header_start|>user<|header_end|>\n\n hi <|eot|><|header_start|>assistant<|header_end|>\n\nyo<|eot|>",
        ),
        ("mistral_v1", "<s> [INST]  hi  [/INST] yo<|im_end|>"),
        ("mistral_v2v3", "<s>[INST]  hi [/INST] yo<|im_end|>"),
        ("mistral_v3_tekken", "<s>[INST] hi [/INST]yo<|im_end|>"),
        ("mistral_v7_tekken", "<s>[INST] hi [/INST]yo<|im_end|>"),
        ("phi_35", "<|user|>\n hi <|end|>\n<|assistant|>\nyo<|end|>\n"),
        ("phi_4", "<|im_start|>user<|im_sep|> hi <|im_end|><|im_start|>assistant<|im_sep|>yo<|im_end|>"),
        *(
            (
                name,
                "<s><|START_OF_TURN_TOKEN|><|USER_TOKEN|> hi <|END_OF_TURN_TOKEN|>"
                "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>yo<|END_OF_TURN_TOKEN|>",
            )
            for name in ("cohere", "aya")
        ),
    ],
)
def test_templates_by_hand(name, text):
    tokenizer = make_tokenizer(bos="<s>")
    tokenizer.chat_template = template_text(name, None, tokenizer)
    assert tokenizer.apply_chat_template(PAIR, tokenize=False) == text
    asked = tokenizer.apply_chat_template(PAIR[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(asked) and text[len(asked) :].lstrip().startswith("yo")


def test_every_template_is_tested():
    tested = {name for name, _ in test_templates_by_hand.pytestmark[0].args[1]}
    assert tested == set(template_names())


@pytest.mark.parametrize("name", TURN_FORMATS)
def test_formats_of_turns_by_role(name):
    """The system text once and in front; the answers trained with their end and nothing else."""
    template = ChatTemplate(jinja_of(TURN_FORMATS[name]), make_tokenizer(bos="<s>"))
    talk = [{"role": "system", "content": "be kind"}, *PAIR, {"role": "user", "content": "more"}, PAIR[1]]
    text, turns = template.turns(talk, None, [2, 4])
    assert text.count("be kind") == 1 and text.index("be kind") < text.index(" hi ") < text.index("more")
    end = TURN_FORMATS[name].end.replace("{eos}", "<|im_end|>")
    for turn in turns.values():
        assert text[turn.start : turn.stop].lstrip() == f"yo{end}"
        assert text[slice(*turn.end)] == end
    with pytest.raises(RecordError, match="not tool"):
        template.text.render([*talk, {"role": "tool", "content": "1"}])


def test_templates_that_tokenizers_bring():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ '<|im_start|><|im_end|><think>' }}"
    assert template_text("qwen3", None, tokenizer) == tokenizer.chat_template
    assert named_template_text("qwen3", None) is None
    with pytest.raises(DataError, match=r"'qwen_25' is the one that its models bring .* one without <tool_call>"):
        template_text("qwen_25", None, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"'qwen3' .* has none: set tokenizer_config"):
        template_text("qwen3", None, tokenizer)
    with pytest.raises(DataError, match="comes with tokenizers only"):
        template_text("tokenizer_default_fallback_qwen3", None, tokenizer)


def test_a_data_set_may_use_the_tokenizers_own_beside_the_configs(tmp_path, make_config):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    folder = save_model_folder(tmp_path / "m", tokenizer)
    cfg = make_config({"path": "x.jsonl", "type": "chat_template"}, base_model=str(folder), chat_template="chatml")
    loaded = load_tokenizer(cfg)
    assert template_text("tokenizer_default", None, loaded) == tokenizer.chat_template
    assert loaded.chat_template == template_text("chatml", None, loaded)
    loaded.save_pretrained(tmp_path / "out")
    assert (
        load_tokenizer(make_config({"path": "x"}, base_model=str(tmp_path / "out"), chat_template=None)).chat_template
        == loaded.chat_template
    )


def test_where_a_template_comes_from(tmp_path):
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match="no chat template of its own: set chat_template to one of alpaca, aya, chatml"):
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
        ("vicuna", None, "'vicuna' does not come with allranks, .* tokenizer_default"),
        ("llava", None, "is for images, and only text is trained"),
        ("jinja", None, "needs chat_template_jinja"),
        ("jinja", "no/such/file", "neither a template .* nor an existing file"),
        ("chatml", "{{ 1 }}", "needs chat_template: jinja, but it is chatml"),
    ],
)
def test_templates_that_do_not_exist(name, jinja, message):
    with pytest.raises(DataError, match=message):
        template_text(name, jinja, make_tokenizer())


@pytest.mark.parametrize(
    "template",
    [
        '{%- if strftime_now is defined %}{{ strftime_now("%d %b %Y") }}{% endif %}',
        "{%- set wanted = '%d %b %Y' %}{{ strftime_now(wanted) }}",
        "{% set now = strftime_now %}{{ now('%d ') + now(format='%b %Y') }}",
        "{% macro day() %}{{ strftime_now('%d') }}{% endmacro %}{% for m in messages %}{{ day() }}{% endfor %}"
        "{{ ' ' ~ strftime_now('%b') | trim ~ ' ' ~ strftime_now('%Y') }}",
    ],
)
def test_todays_date_is_the_same_on_every_day_however_it_is_read(template):
    assert ChatTemplate(template, make_tokenizer()).text.render(PAIR[:1]) == "01 Jan 2025"


def test_a_fixed_day_is_written_in_every_format():
    letters = "aAwdbBmyYHIMSpjUWcxXfGuVCDeFhnrRtTzZ"
    formats = [*(f"%{letter}" for letter in letters), *(f"%-{letter}" for letter in "dmyHIMSj"), "%%d %d%%", "100 %"]
    template = ChatTemplate("{% for m in messages %}{{ strftime_now(m.content) }}|{% endfor %}", make_tokenizer())
    written = template.text.render([{"role": "user", "content": one} for one in formats])
    day = datetime(2025, 1, 1)
    assert written == "".join(day.strftime(one) + "|" for one in formats)


@pytest.mark.parametrize("start", ["", "\n", "  {% if true %}\n{% endif %}", "  x"])
def test_a_template_with_a_date_begins_as_it_does_without(start):
    template = start + "{{ messages[0].content }}{% if false %}{{ strftime_now('%d') }}{% endif %}"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    assert ChatTemplate(template, tokenizer).text.render(PAIR[:1]) == tokenizer.apply_chat_template(
        PAIR[:1], tokenize=False
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% if x %}", "no valid Jinja: line 2"),
        ("{{ ['a', 'b'] | random }}", r"draws at random \(random\)"),
        ("{{ lipsum() }}", r"draws at random \(lipsum\)"),
    ],
)
def test_templates_that_are_broken_or_differ_between_nodes_are_refused_at_once(template, message):
    with pytest.raises(DataError, match=message):
        ChatTemplate(template, make_tokenizer())


def test_marks_and_loop_controls_are_valid_and_random_as_a_word_is_no_draw():
    template = "{% for m in messages %}{%- generation -%}| random{% endgeneration %}{% break %}{% endfor %}"
    assert ChatTemplate(template, make_tokenizer()).text.render(PAIR) == "| random"
