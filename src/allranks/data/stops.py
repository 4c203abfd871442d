"""What makes the trained model stop: the tokens that end a turn in the trained text, for what is exported."""

from dataclasses import dataclass
from typing import Any

from allranks.config import RunConfig
from allranks.data.chat import ChatEncoder
from allranks.data.formats import encoder_for
from allranks.data.qwen import END as QWEN_END
from allranks.data.qwen import QwenEncoder


@dataclass(frozen=True)
class Stops:
    """`tokens`: trained ends of turns, each one token of the tokenizer, in order. `only`: nothing else is trained as
    an end, so that the first of them is what the tokenizer should call its end. `warnings`: turns without an end."""

    tokens: list[str]
    only: bool
    warnings: list[str]


def trained_stops(cfg: RunConfig, tokenizer: Any) -> Stops:
    """What ends the assistant's turns of all conversations that `cfg` trains on, as their chat templates write them."""
    tokens: list[str] = []
    warnings: list[str] = []
    only = True
    for spec in cfg.data.datasets:
        encoder = encoder_for(spec, cfg.data, tokenizer)
        if isinstance(encoder, QwenEncoder):
            tokens.append(QWEN_END)
            continue
        if not isinstance(encoder, ChatEncoder):
            only = False
            continue
        whole = [token for token in encoder.stops if _is_one(token, tokenizer)]
        if not whole:
            warnings.append(f"data set {spec.path}: {_why_none(encoder, tokenizer)}; generation will run on")
        tokens += whole
        # A template that writes the tokenizer's end by that name must go on to find it there.
        only = only and bool(whole) and not any("eos_token" in one.text.template for one in encoder.templates)
    tokens = list(dict.fromkeys(tokens))
    return Stops(tokens, only and tokenizer.eos_token not in tokens, list(dict.fromkeys(warnings)))


def _is_one(token: str, tokenizer: Any) -> bool:
    # What is no token of its own is another one in other surroundings.
    return token == tokenizer.eos_token or token in tokenizer.get_added_vocab()


def _why_none(encoder: ChatEncoder, tokenizer: Any) -> str:
    template = encoder.templates[0]
    if encoder.stops:
        text = "".join(encoder.stops)
        return (
            f"what ends a turn in its chat template, {text!r}, is not one token of this tokenizer, so that no "
            f"generation_config can name it: add it with tokens: [{text!r}], or give it to generate as a stop string"
        )
    if template.stops:
        return f"{template.stops[0]!r} ends its turns and is not trained: remove train_on_eos and train_on_eot"
    if template.text.header_as_stop:
        return (
            "its chat template ends no turn; what stops the model is the header of the next one, which a last turn "
            f"lacks: set eot_tokens: [{template.text.header_as_stop!r}], which is then trained behind it, too"
        )
    return "its chat template writes nothing behind a turn that would stop it: use one that does, such as chatml"
