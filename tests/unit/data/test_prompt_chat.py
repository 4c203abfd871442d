"""Instruction records with a prompt of their own, as in Axolotl, or through a chat template."""

import pytest

from allranks.config.load import resolve_mapping
from allranks.data import prepare
from allranks.data.notes import notes
from allranks.data.records import RecordError
from allranks.data.stops import trained_stops
from allranks.errors import UsageError
from tests.unit.data.conftest import make_tokenizer, save_model_folder
from tests.unit.data.families import FAMILIES, unmarked

ALPACA = {"instruction": "Say it", "input": "now", "output": "It is five."}
PAIR = [{"role": "user", "content": "Say it\nnow"}, {"role": "assistant", "content": "It is five."}]


@pytest.fixture
def chat_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = unmarked(FAMILIES["gemma"])
    return tokenizer


def written(encode, tokenizer, record, spec, **keys):
    ((tokens, _),) = encode(record, spec, tokenizer, **keys)
    return tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("type_name", "record"),
    [
        ("alpaca:tokenizer_default", ALPACA),
        ("alpaca_chat:tokenizer_default", ALPACA),
        ("gpteacher:tokenizer_default", {"instruction": "Say it", "input": "now", "response": "It is five."}),
        ("oasst:tokenizer_default", {"INSTRUCTION": "Say it\nnow", "RESPONSE": "It is five."}),
        ("alpaca_chat.load_qa:tokenizer_default", {"question": "Say it\nnow", "answer": "It is five."}),
        ("alpaca_w_system:tokenizer_default", ALPACA | {"system": ""}),
    ],
)
def test_records_go_through_the_tokenizers_template(type_name, record, encode, trained, chat_tokenizer):
    text = chat_tokenizer.apply_chat_template(PAIR, tokenize=False)
    assert written(encode, chat_tokenizer, record, {"type": type_name}) == text
    assert trained(record, {"type": type_name}, chat_tokenizer) == ["It is five.<end>"]


@pytest.mark.parametrize(
    ("spec", "keys"),
    [
        ({"type": "alpaca:llama3"}, {}),
        ({"type": "alpaca", "chat_template": "llama3"}, {}),
        ({"type": "alpaca:jinja"}, {"chat_template": "jinja", "chat_template_jinja": "LLAMA3"}),
        ({"type": "alpaca", "chat_template_jinja": "LLAMA3"}, {}),
        ({"type": {"field_instruction": "instruction", "field_output": "output"}, "chat_template": "llama3"}, {}),
        ({"type": "alpaca:llama3"}, {"chat_template": "gemma"}),
    ],
)
def test_any_template_may_be_named(spec, keys, encode, tokenizer):
    from allranks.data.templates import template_text

    llama3 = template_text("llama3", None, tokenizer)
    spec, keys = ({key: llama3 if value == "LLAMA3" else value for key, value in one.items()} for one in (spec, keys))
    text = tokenizer.apply_chat_template(PAIR, chat_template=llama3, tokenize=False)
    assert written(encode, tokenizer, ALPACA, spec, **keys) == text


def test_styles_keep_their_meaning(encode, chat_tokenizer):
    text = written(encode, chat_tokenizer, ALPACA, {"type": "alpaca:chatml"})
    assert text.endswith("<|im_start|>user\nSay it\nnow<|im_end|>\n<|im_start|>assistant\nIt is five.<|im_end|>")
    assert text.startswith("<|im_start|>system\nBelow is an instruction")


def test_system_texts_and_formats_of_the_users_own(encode, tokenizer):
    own = {"system_prompt": "Be brief.", "format": "Q: {instruction} ({input})", "no_input_format": "Q: {instruction}"}
    system = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    through = {"type": own, "chat_template": "chatml"}
    assert system.format("Be brief.", "Q: Say it (now)") in written(encode, tokenizer, ALPACA, through)
    assert system.format("Be kind.", "Q: Say it") in written(
        encode, tokenizer, ALPACA | {"input": "", "system": "Be kind."}, through
    )
    through = {"type": "alpaca", "chat_template": "chatml"}
    text = written(encode, tokenizer, ALPACA, through, default_system_message="Be glad.")
    assert system.format("Be glad.", "Say it\nnow") in text


def test_what_cannot_be_meant(encode, tokenizer):
    with pytest.raises(UsageError, match="gemma and type alpaca:llama3 name two; remove one of them"):
        encode(ALPACA, {"type": "alpaca:llama3", "chat_template": "gemma"})
    with pytest.raises(UsageError, match=r"field_messages.* has no effect with type alpaca through a chat template"):
        encode(ALPACA, {"type": "alpaca:llama3", "field_messages": "x"})
    with pytest.raises(RecordError, match="field output: empty"):
        encode(ALPACA | {"output": " "}, {"type": "alpaca:llama3"})


def test_its_end_of_turn_is_a_stop(make_config, tokenizer):
    cfg = make_config({"path": "a.jsonl", "type": "alpaca", "chat_template": "chatml"})
    assert trained_stops(cfg, tokenizer).tokens == ["<|im_end|>"]


class TestWhatIsSaid:
    def test_a_prompt_beside_a_chat_template_once(self, make_config, chat_tokenizer, tmp_path, write_jsonl):
        folder = save_model_folder(tmp_path / "model", chat_tokenizer)
        data = {"path": str(write_jsonl([ALPACA])), "type": "alpaca"}
        cfg = make_config(datasets=[data, data | {"type": "gpteacher"}], base_model=str(folder), chat_template=None)
        [told] = notes(cfg.data, chat_tokenizer)
        assert "trained with the prompt of type: alpaca, as in Axolotl" in told and "alpaca:tokenizer_default" in told
        for _ in range(2):  # made, and opened
            lines = []
            prepare(make_config(data, base_model=str(folder), chat_template=None), report=lines.append)
            assert sum("as in Axolotl" in line for line in lines) == 1

    def test_nothing_where_there_is_nothing_to_say(self, make_config, tokenizer, chat_tokenizer):
        data = {"path": "a.jsonl", "type": "alpaca"}
        assert notes(make_config(data, chat_template=None).data, tokenizer) == []
        through = make_config(data | {"type": "alpaca:tokenizer_default"}, chat_template=None)
        assert notes(through.data, chat_tokenizer) == []

    def test_a_date(self, make_config, tokenizer):
        dated = "{{ strftime_now('%d') }}" + FAMILIES["chatml"]
        cfg = make_config(
            {"path": "a.jsonl", "type": "chat_template"}, chat_template="jinja", chat_template_jinja=dated
        )
        [told] = notes(cfg.data, tokenizer)
        assert "1 January 2025 stands in its place" in told

    @pytest.mark.parametrize(
        ("data", "way"),
        [
            ({"type": "alpaca"}, "`type: alpaca:llama3` in a data set sends its records through it"),
            ({"type": {"field_output": "a"}}, "`chat_template: llama3` in a data set sends its records through it"),
            ({"type": "completion"}, "no data set goes through it. The exported tokenizer has it"),
            ({"type": "chat_template", "chat_template": "gemma"}, "no data set goes through it. The"),
            ({"type": "alpaca:tokenizer_default"}, "no data set goes through it"),
        ],
    )
    def test_a_template_that_no_data_set_uses(self, data, way, make_config):
        [told] = make_config({"path": "a.jsonl"} | data, chat_template="llama3").warnings
        assert told.startswith("<dict>: chat_template: has no effect on what is trained") and way in told

    def test_chatml_is_a_style_behind_a_type(self, make_config):
        [told] = make_config({"path": "a.jsonl", "type": "alpaca"}, chat_template="chatml").warnings
        assert "`chat_template: chatml` in a data set sends" in told

    def test_a_template_that_one_data_set_uses(self):
        flat = {"base_model": "m", "learning_rate": 1e-3, "chat_template": "llama3"}
        datasets = [{"path": "a", "type": "alpaca"}, {"path": "b", "type": "chat_template"}]
        assert not resolve_mapping(flat | {"datasets": datasets}).warnings
