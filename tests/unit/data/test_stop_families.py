"""Whatever template a base model is trained with, and whatever it calls its end: what ends its answers is known."""

import itertools

import pytest

from allranks.data.chat import ChatEncoder
from allranks.data.records import RecordError
from allranks.data.stops import trained_stops
from tests.unit.data.conftest import make_tokenizer
from tests.unit.data.families import FAMILIES, unmarked
from tests.unit.data.test_as_transformers import NUM_CONVERSATIONS, conversation

ENDS = {
    **dict.fromkeys(("chatml", "qwen", "qwen_thinking", "coder", "parts"), ("<|im_end|>",)),
    "llama3": ("<|eot|>", "<|eom|>"),
    "gemma": ("<end>",),
    "phi": ("<|end|>",),
    "cohere": ("<E>",),
    "channels": ("<|return|>", "<|call|>", "<|end|>"),
    "two_ends": ("<|im_end|>",),
    "glm": ("<|user|>", "<|observation|>"),
}
EOS = ("<|endoftext|>", "<|im_end|>")
CALLS_END = {"llama3": ("<|eot|>", "<|eom|>"), "channels": ("<|return|>", "<|call|>")}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_token_behind_each_answer_stops_the_exported_model(family, make_config):
    cfg = make_config({"path": "x.jsonl", "type": "chat_template"}, chat_template=None)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<|end|>", *ENDS.get(family, ()))
    for eos in EOS:
        tokenizer = make_tokenizer(special=tuple(dict.fromkeys(special)), eos=eos, bos="<s>")
        tokenizer.chat_template = unmarked(FAMILIES[family])
        tokenizer.init_kwargs.pop("chat_template", None)
        found = trained_stops(cfg, tokenizer)
        encoder = ChatEncoder(cfg.data.datasets[0], cfg.data, tokenizer)
        seen = set()
        for number in range(NUM_CONVERSATIONS):
            messages, tools = conversation(number)
            try:
                drafts = encoder({"messages": messages, "tools": tools})
            except RecordError:
                continue
            for piece in itertools.chain(*drafts):
                trained = [piece.text[start:stop] for start, stop in piece.trained]
                seen |= {text for text in trained if text in special}
        known = {*found.tokens, tokenizer.eos_token}
        assert seen <= known or found.warnings, "each end that is trained stops what is exported"
        assert seen or found.warnings
        if family in ("llama3", "channels"):
            assert seen == set(CALLS_END[family]), "answers and calls end with tokens of their own"


def test_what_stands_behind_each_call_ends_no_turn(make_config):
    """As GLM's: a call has its own closing token, and what stops the model is the next header."""
    special = ("<|endoftext|>", "<|im_end|>", "</call>")
    tokenizer = make_tokenizer(special=special, eos="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + (m.content or '') }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name + '</call>' }}{% endfor %}"
        "{% if not m.tool_calls %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    cfg = make_config({"path": "x.jsonl", "type": "chat_template"}, chat_template=None)
    assert trained_stops(cfg, tokenizer).tokens == ["<|im_end|>"]
