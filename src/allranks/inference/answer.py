"""One answer of a loaded model, through its own chat template, told piece by piece; transformers generates it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from allranks.errors import UsageError
from allranks.inference.load import Loaded, no_template
from allranks.inference.prompts import Prompt


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens; what is None is as generation_config.json says. `temperature` 0: always the likeliest."""

    max_new_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def kwargs(self) -> dict[str, Any]:
        """The arguments of `generate`."""
        kwargs: dict[str, Any] = {}
        if self.temperature == 0:
            # Else transformers says of each of them that it has no effect.
            kwargs |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        elif self.temperature is not None:
            kwargs |= {"do_sample": True, "temperature": self.temperature}
        if self.top_p is not None and self.temperature != 0:
            kwargs |= {"do_sample": True, "top_p": self.top_p}
        return kwargs


@dataclass(frozen=True)
class Answer:
    """`ended`: the model ended it; else it was cut at the most tokens that were allowed."""

    text: str
    num_tokens: int
    ended: bool


def answer(
    loaded: Loaded, prompt: Prompt, sampling: Sampling, on_text: Callable[[str], None] = lambda text: None
) -> Answer:
    """The model's answer; `on_text` takes its pieces as they come.

    Raises UsageError for a prompt that is longer than the model, or that its template refuses.
    """
    ids = _tokens(loaded, prompt)
    room = sampling.max_new_tokens
    if loaded.longest is not None:
        room = min(room, loaded.longest - ids.shape[1])
        if room < 1:
            raise UsageError(
                f"{prompt.name} has {ids.shape[1]:,} tokens, and {loaded.title} has positions for {loaded.longest:,}: "
                "shorten it"
            )
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    stream = _Stream(loaded.tokenizer, on_text)
    pad = loaded.tokenizer.pad_token_id
    with torch.inference_mode():
        found = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            pad_token_id=loaded.tokenizer.eos_token_id if pad is None else pad,
            streamer=stream,
            **sampling.kwargs(),
        )
    new = found[0, ids.shape[1] :]
    text = loaded.tokenizer.decode(new, skip_special_tokens=True)
    ends = loaded.model.generation_config.eos_token_id
    ended = len(new) > 0 and int(new[-1]) in (ends if isinstance(ends, list) else [ends])
    return Answer(text, len(new), ended)


def _tokens(loaded: Loaded, prompt: Prompt) -> torch.Tensor:
    tokenizer = loaded.tokenizer
    if isinstance(prompt.content, str):
        found = tokenizer(prompt.content, return_tensors="pt")["input_ids"]
    else:
        if not tokenizer.chat_template:
            raise no_template(loaded.title)
        found = _through_template(loaded, prompt, prompt.content)
    return found.to(loaded.model.device)


def _through_template(loaded: Loaded, prompt: Prompt, messages: Sequence[dict]) -> torch.Tensor:
    try:
        return loaded.tokenizer.apply_chat_template(
            list(messages),
            tools=prompt.tools,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            **loaded.template_kwargs,
        )["input_ids"]
    except Exception as error:  # a template raises what it likes: jinja2's errors, TypeError, its own refusals
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{prompt.name}: the chat template of {loaded.title} refuses it: {reason}") from error


class _Stream(TextStreamer):
    """Hands whole words on, which transformers' own would print."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._on_text(text)
