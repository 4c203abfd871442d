"""A chat template as it writes: conversations as text, and what it puts around the turns of any."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from allranks.data.records import RecordError
from allranks.data.templates import check_template, pin_dates

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")  # private-use characters, which no text holds by accident


class TemplateText:
    """A Jinja chat template with the special tokens of a tokenizer, and further `variables` of the user's.

    `ends`: texts of the tokens that may end a turn. `no_tools`: what the template is given where there are none.
    """

    def __init__(
        self,
        template: str,
        tokenizer: Any,
        eot_tokens: Iterable[str],
        variables: Mapping[str, Any] | None,
        *,
        for_tools: bool,
    ):
        check_template(template)
        self.template = pin_dates(template)
        self.marks_generation = _GENERATION.search(self.template) is not None
        self._variables = {**tokenizer.special_tokens_map, **(variables or {})}
        # One for tools may not ask whether there are any.
        self.no_tools: list[dict] | None = [] if for_tools else None
        self.ends = _end_tokens(tokenizer, eot_tokens)

    def render(self, messages: list[dict], tools: list[dict] | None = None, *, prompt: bool = False) -> str:
        """The text of a conversation; `prompt` adds the header of the next assistant turn."""
        return self.render_marked(messages, tools, prompt)[0]

    def render_marked(self, messages: list[dict], tools: Any, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """The same, and where in it what the template marks as the model's is."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered: Any = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self.template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=self.marks_generation,
                **self._variables,
            )
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error) or type(error).__name__
            raise RecordError(f"the chat template refuses the conversation: {reason}") from error
        texts, generated = rendered
        return texts[0], generated[0] if generated else []

    def around(self, messages: list[dict], tools: Any) -> list[str] | None:
        """What the template writes before, between and after the messages, if it writes each once and in order."""
        blank = [message | {"content": f"\ue000{i}\ue001"} for i, message in enumerate(messages)]
        try:
            parts = _PLACEHOLDER.split(self.render(blank, tools))
        except RecordError:
            return None
        in_order = parts[1::2] == [str(i) for i in range(len(messages))]
        return parts[0::2] if in_order else None

    @cached_property
    def prompt(self) -> str:
        """The header of an assistant turn, as the template writes it for generation; "" if it writes none."""
        question = [{"role": "user", "content": "\ue0000\ue001"}]
        try:
            without, with_prompt = (self.render(question, self.no_tools, prompt=prompt) for prompt in (False, True))
        except RecordError:
            return ""
        return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""

    @cached_property
    def lead(self) -> str:
        """White space between a question and its answer, which the model writes where there is no generation prompt."""
        question = {"role": "user", "content": "\ue0000\ue001"}
        try:
            asked = self.render([question], self.no_tools)
            answered = self.render([question, {"role": "assistant", "content": "\ue0001\ue001"}], self.no_tools)
        except RecordError:
            return ""
        between = answered.removeprefix(asked).partition("\ue000")[0] if answered.startswith(asked) else ""
        return between if between.isspace() else ""

    @cached_property
    def end_text(self) -> str:
        """What ends an assistant turn in templates whose end is plain text to the tokenizer; "" if nothing does."""
        pair = [{"role": "user", "content": "\ue0000\ue001"}, {"role": "assistant", "content": "\ue0001\ue001"}]
        try:
            tail = self.render(pair, self.no_tools).rpartition("\ue001")[2]
        except RecordError:
            return ""
        return (tail.split() or [""])[0]

    @cached_property
    def tail(self) -> tuple[str, ...]:
        """The special tokens that the template writes in a row behind an assistant's last turn."""
        pair = [{"role": "user", "content": "\ue0000\ue001"}, {"role": "assistant", "content": "\ue0001\ue001"}]
        try:
            rest = self.render(pair, self.no_tools).rpartition("\ue001")[2].lstrip()
        except RecordError:
            return ()
        tokens: list[str] = []
        while token := max((token for token in self.ends if token and rest.startswith(token)), key=len, default=None):
            tokens.append(token)
            rest = rest.removeprefix(token)
        return tuple(tokens)

    @cached_property
    def header_as_stop(self) -> str | None:
        """The first special token of the next user's header, where nothing else ends the assistant's turn before it."""
        blank = [{"role": role, "content": f"\ue000{i}\ue001"} for i, role in enumerate(("user", "assistant", "user"))]
        literals = self.around(blank, self.no_tools)
        between = literals[2].lstrip() if literals else ""
        if literals is None or literals[3].strip():
            return None
        return max((token for token in self.ends if between.startswith(token)), key=len, default=None)


def _end_tokens(tokenizer: Any, eot_tokens: Iterable[str]) -> tuple[str, ...]:
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*([tokenizer.eos_token] if tokenizer.eos_token else []), *eot_tokens, *special]))
