"""What is trained in each type, by hand."""

import numpy as np
import pytest

from allranks.data.records import RecordError
from allranks.errors import ConfigError, DataError, UsageError
from tests.unit.data.conftest import make_tokenizer

ALPACA = {"instruction": "Say it", "input": "now", "output": "It is five."}
ASKED = "### Instruction:\nSay it\n\n### Input:\nnow\n\n### Response:\n"
TASK = "Below is an instruction that describes a task"
COMPLETES = "Write a response that appropriately completes the request.\n\n"


def decoded(sample, tokenizer):
    return tokenizer.decode(sample[0])


class TestAlpaca:
    def test_the_prompt_is_masked_and_the_answer_with_its_end_is_trained(self, encode, trained, tokenizer):
        text = f"{TASK}, paired with an input that provides further context. {COMPLETES}{ASKED}It is five.<|im_end|>"
        assert decoded(encode(ALPACA, {"type": "alpaca"})[0], tokenizer) == text
        assert trained(ALPACA, {"type": "alpaca"}) == ["It is five.<|im_end|>"]
        assert trained(ALPACA, {"type": "alpaca"}, train_on_eos="none") == ["It is five."]

    @pytest.mark.parametrize("empty", ["", None])
    def test_without_an_input(self, empty, encode, tokenizer):
        text = f"{TASK}. {COMPLETES}### Instruction:\nSay it\n\n### Response:\nIt is five.<|im_end|>"
        assert decoded(encode(ALPACA | {"input": empty}, {"type": "alpaca"})[0], tokenizer) == text
        assert (
            decoded(encode({k: v for k, v in ALPACA.items() if k != "input"}, {"type": "alpaca"})[0], tokenizer) == text
        )

    def test_prompt_and_answer_are_tokenized_apart_as_when_the_model_is_asked(self, encode, tokenizer):
        ((tokens, mask),) = encode(ALPACA, {"type": "alpaca"})
        prompt = tokenizer.decode(tokens[: int(mask.argmax())])
        assert tokens.tolist() == tokenizer(prompt)["input_ids"] + tokenizer("It is five.<|im_end|>")["input_ids"]

    def test_the_tokenizers_own_beginning_is_kept(self, encode):
        begins = make_tokenizer(bos="<s>", begin_with_bos=True)
        ((tokens, mask),) = encode(ALPACA, {"type": "alpaca"}, begins)
        assert tokens[0] == begins.bos_token_id and (tokens == begins.bos_token_id).sum() == 1 and mask[0] == 0

    def test_a_prompt_and_an_answer_that_bring_their_tokens_have_them_once(self, encode):
        begins = make_tokenizer(bos="<s>", begin_with_bos=True)
        record = {"instruction": "Say it", "output": "It is five.<|im_end|>"}
        ((tokens, mask),) = encode(record, {"type": {"format": "<s>[INST] {instruction} [/INST] "}}, begins)
        assert begins.decode(tokens) == "<s>[INST] Say it [/INST] It is five.<|im_end|>"
        assert begins.decode(tokens[mask.astype(bool)]) == "It is five.<|im_end|>"

    def test_train_on_inputs(self, encode):
        ((_, mask),) = encode(ALPACA, {"type": "alpaca"}, train_on_inputs=True)
        assert mask[0] == 0 and mask[1:].all()

    @pytest.mark.parametrize(
        ("type_name", "record", "prompt"),
        [
            ("gpteacher", {"instruction": "Say it", "input": "now", "response": "It is five."}, ASKED),
            ("alpaca_chat.load_qa", {"question": "Say it", "answer": "It is five."}, "USER: Say it\nASSISTANT:"),
            ("alpaca_chat.load_camel_ai",
             {"message_1": "Say it", "message_2": "It is five."},
             "USER: Say it\nASSISTANT:"),
            ("alpaca:chat", ALPACA, "USER: Say it\nnow\nASSISTANT:"),
            ("alpaca:chatml", ALPACA, "<|im_start|>user\nSay it\nnow<|im_end|>\n<|im_start|>assistant\n"),
            ("alpaca_w_system.load_open_orca",
             {"system_prompt": "", "question": "Say it", "response": "It is five."},
             "### Instruction:\nSay it\n\n### Response:\n"),
        ],
    )  # fmt: skip
    def test_variants(self, type_name, record, prompt, encode, trained, tokenizer):
        assert decoded(encode(record, {"type": type_name})[0], tokenizer).endswith(f"{prompt}It is five.<|im_end|>")
        assert trained(record, {"type": type_name}) == ["It is five.<|im_end|>"]

    def test_a_records_own_system_text(self, encode, tokenizer):
        text = decoded(encode(ALPACA | {"system": "Be kind."}, {"type": "alpaca_w_system"})[0], tokenizer)
        assert text == f"Be kind.\n\n{ASKED}It is five.<|im_end|>"

    def test_a_format_of_the_users_own(self, encode, trained, tokenizer):
        own = {
            "system_prompt": "Be {kind}.",
            "system_format": "[{system}] ",
            "field_instruction": "q",
            "field_input": "extra",
            "field_output": "a",
            "format": "Q: {instruction} ({input})\nA: ",
            "no_input_format": "Q: {instruction}\nA: ",
        }
        record = {"q": "why {x}?", "extra": "now", "a": "so"}
        assert decoded(encode(record, {"type": own})[0], tokenizer) == "[Be {kind}.] Q: why {x}? (now)\nA: so<|im_end|>"
        assert trained(record | {"extra": ""}, {"type": own}) == ["so<|im_end|>"]

    def test_a_format_with_an_unknown_name_is_an_error(self, encode):
        with pytest.raises(DataError, match=r"format: 'Q: {question}' can hold {instruction} and {input}"):
            encode({}, {"type": {"format": "Q: {question}"}})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"output": ""}, "field output: empty"),
            ({"output": None}, "field output: empty"),
            ({"output": 5}, "field output: expected text, found 5"),
            ({"instruction": ["x"]}, r"field instruction: expected text, found \['x'\]"),
        ],
    )
    def test_broken_fields(self, change, message, encode):
        with pytest.raises(RecordError, match=message):
            encode(ALPACA | change, {"type": "alpaca"})

    def test_missing_fields(self, encode):
        with pytest.raises(RecordError, match="no field output; it has instruction, input"):
            encode({"instruction": "a", "input": "b"}, {"type": "alpaca"})
        with pytest.raises(RecordError, match="expected an object with instruction and output, found 'a'"):
            encode("a", {"type": "alpaca"})


class TestCompletion:
    def test_all_of_the_text_and_its_end_are_trained(self, encode):
        begins = make_tokenizer(bos="<s>", begin_with_bos=True)
        ((tokens, mask),) = encode({"text": "It is five."}, {"type": "completion"}, begins)
        assert begins.decode(tokens) == "<s>It is five.<|im_end|>"
        assert mask.tolist() == [0] + [1] * (len(tokens) - 1)

    def test_another_field(self, encode, tokenizer):
        ((tokens, _),) = encode({"body": "five"}, {"type": "completion", "field": "body"})
        assert tokenizer.decode(tokens) == "five<|im_end|>"

    @pytest.mark.parametrize("begin", ["", "<s>", "\n<s>"])
    @pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n"])
    def test_a_text_that_brings_its_beginning_and_end_has_them_once(self, begin, end, encode, trained):
        begins = make_tokenizer(bos="<s>", begin_with_bos=True)
        record = {"text": f"{begin}It is five.{end}"}
        ((tokens, _),) = encode(record, {"type": "completion"}, begins)
        assert begins.decode(tokens) == f"{begin or '<s>'}It is five.{end or '<|im_end|>'}"
        if end != "<|im_end|>\n":
            [text] = trained(record, {"type": "completion"}, begins, train_on_eos="none")
            assert not text.endswith("<|im_end|>")

    def test_an_empty_text(self, encode):
        with pytest.raises(RecordError, match="field text: empty"):
            encode({"text": " \n"}, {"type": "completion"})


SEGMENTS = [
    {"label": True, "text": "<s>Hi"},
    {"label": True, "text": " there. "},
    {"label": False, "text": "is it "},
    {"label": True, "text": "five?<|im_end|>"},
]


class TestInputOutput:
    def test_segments_are_trained_as_labelled_with_nothing_added(self, encode, trained):
        begins = make_tokenizer(bos="<s>", begin_with_bos=True)
        ((tokens, mask),) = encode({"segments": SEGMENTS}, {"type": "input_output"}, begins)
        texts = [segment["text"] for segment in SEGMENTS]
        pieces = [begins(text, add_special_tokens=False)["input_ids"] for text in texts]
        assert tokens.tolist() == [token for piece in pieces for token in piece]
        expected = np.concatenate([np.full(len(p), s["label"]) for p, s in zip(pieces, SEGMENTS, strict=True)])
        expected[0] = 0
        assert mask.tolist() == expected.tolist()

    @pytest.mark.parametrize(
        ("segments", "message"),
        [
            (None, "field segments: expected a list"),
            ([], "field segments: expected a list"),
            ([{"text": "a"}], "segment 0: label must be true or false, found None"),
            ([{"text": "a", "label": "yes"}], "segment 0: label must be true or false, found 'yes'"),
            ([{"label": True, "text": "a"}, {"label": True}], "segment 1: expected {label: true or false, text}"),
        ],
    )
    def test_broken_segments(self, segments, message, encode):
        with pytest.raises(RecordError, match=message):
            encode({"segments": segments}, {"type": "input_output"})


class TestQwen:
    def reference(self, turns, tokenizer):
        """Ids and labels of one conversation, written down from the description of Qwen's finetune.py in the docs."""

        def of(text):
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        start, end, newline = of("<|im_start|>"), of("<|im_end|>"), of("\n")
        ids, labels = [], []
        for role, text in [("system", "You are a helpful assistant."), *turns]:
            header = of(role) + newline
            ids += start + header + of(text) + end + newline
            said = of(text) if role == "assistant" else [-100] * len(of(text))
            labels += start + [-100] * len(header) + said + end + newline
        labels[0] = -100  # nothing predicts the first token
        return ids, labels

    @pytest.mark.parametrize("text", ["It is five.", "你好。很高兴为你提供帮助。", "\n\n", ""])
    def test_ids_and_labels(self, text, encode, tokenizer):
        turns = [("user", "Hi\n"), ("assistant", text), ("user", "And?"), ("assistant", "two")]
        record = {"conversations": [{"from": role, "value": value} for role, value in turns]}
        ((tokens, mask),) = encode(record, {"type": "qwen"})
        ids, labels = self.reference(turns, tokenizer)
        assert tokens.tolist() == ids
        assert np.where(mask, tokens.astype(int), -100).tolist() == labels

    def test_a_leading_turn_of_the_assistant_is_dropped(self, encode):
        pair = [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]
        whole = encode({"conversations": pair}, {"type": "qwen"})
        led = encode({"conversations": [{"from": "assistant", "value": "x"}, *pair]}, {"type": "qwen"})
        assert led[0][0].tolist() == whole[0][0].tolist()

    @pytest.mark.parametrize(
        ("turns", "message"),
        [
            ([], "field conversations: expected a list"),
            ([{"from": "human", "value": "a"}], "turn 0: from must be user or assistant, found 'human'"),
            ([{"from": "user", "value": None}], "turn 0, value: expected text, found None"),
            ([{"from": "user", "value": "a"}], "no turn of the assistant"),
        ],
    )
    def test_broken_conversations(self, turns, message, encode):
        with pytest.raises(RecordError, match=message):
            encode({"conversations": turns}, {"type": "qwen"})

    def test_a_tokenizer_without_chatml(self, encode):
        with pytest.raises(DataError, match=r"type qwen: the tokenizer has no token <\|im_start\|>"):
            encode({}, {"type": "qwen"}, make_tokenizer(special=["<|endoftext|>"], eos="<|endoftext|>"))


class TestTokenized:
    def test_labels_decide_and_padding_is_left_out(self, encode):
        record = {
            "input_ids": [0, 5, 6, 7, 8, 0],
            "labels": [-100, -100, 6, -100, 8, -100],
            "attention_mask": [0, 1, 1, 1, 1, 0],
        }
        ((tokens, mask),) = encode(record, {"type": None})
        assert tokens.tolist() == [5, 6, 7, 8] and mask.tolist() == [0, 1, 0, 1]

    def test_the_first_token_is_no_target(self, encode):
        ((_, mask),) = encode({"input_ids": [5, 6], "labels": [5, 6]}, {})
        assert mask.tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"text": "a"}, "no field input_ids; it has text. Without a type"),
            ({"input_ids": [1, 2]}, "field labels: expected a list of integers, found None"),
            ({"input_ids": [1, 2], "labels": [1]}, "differ in length: 2, 1, 2"),
            ({"input_ids": [1, 99999], "labels": [1, 1]}, r"input_ids\[1\] is 99999; the tokenizer has ids 0 to"),
            ({"input_ids": [1, 2], "labels": [1, 3]}, r"labels\[1\] is 3; expected input_ids\[1\] \(2\) or -100"),
            ({"input_ids": [1, 2, 3], "labels": [1, 2, 3], "attention_mask": [1, 0, 1]}, "0 between 1s"),
        ],
    )
    def test_broken_records(self, record, message, encode):
        with pytest.raises(RecordError, match=message):
            encode(record, {})


@pytest.mark.parametrize(
    ("type_name", "message"),
    [
        ("sharegpt", "chat_template"),
        ("sharegpt.load_role", "chat_template"),
        ("alpacca", "did you mean alpaca"),
        ("completion:chat", "only prompt types"),
        ("alpaca:fancy", "'fancy' is none of the prompt styles instruct, chat, chatml, and as a chat template"),
    ],
)
def test_types_that_do_not_exist(type_name, message, encode):
    with pytest.raises(UsageError, match=message):  # the config may know it already
        encode({}, {"type": type_name})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"type": "alpaca", "field_messages": "x"},
            "field_messages has no effect with type alpaca; it is for chat_template",
        ),
        ({"type": "completion", "roles_to_train": ["user"]}, "roles_to_train has no effect with type completion"),
        ({"field": "x"}, "field has no effect with type tokenized"),
    ],
)
def test_keys_without_effect_are_errors(spec, message, encode):
    with pytest.raises(ConfigError, match=message.replace(" has", ": has", 1)):
        encode({}, spec)


def test_keys_that_are_false_or_empty_are_none(encode):
    assert encode(ALPACA, {"type": "alpaca", "drop_system_message": False, "roles": None, "chat_template": None})
