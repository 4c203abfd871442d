"""`type: chat_template`: conversations through a Jinja chat template, with exact masks per role, turn and end token."""

from dataclasses import replace
from typing import Any, Protocol

from allranks.data.conversations import Conversation, ConversationFormat
from allranks.data.drafts import Draft, Piece
from allranks.data.forms import fitted
from allranks.data.records import RecordError
from allranks.data.roles import roles_to_train
from allranks.data.templates import template_texts
from allranks.data.turns import ChatTemplate, Turn
from allranks.errors import DataError


class Reader(Protocol):
    """What reads a record as a conversation."""

    def read(self, record: Any) -> Conversation:
        """Errors: `RecordError`."""
        ...


class ChatEncoder:
    """Turns records into drafts. Settings of the data set go before those of the config."""

    def __init__(self, spec: Any, data: Any, tokenizer: Any, *, reader: Reader | None = None):
        """reader: what reads the records, if they are no conversations."""
        if spec.chat_template or spec.chat_template_jinja:
            texts = template_texts(spec.chat_template, spec.chat_template_jinja, tokenizer)
        else:
            texts = template_texts(data.chat_template, data.chat_template_jinja, tokenizer)
        _check_end_tokens(data.eot_tokens or [], tokenizer)
        self._names = texts.names

        def made(text: str | None, for_tools: bool) -> ChatTemplate | None:
            if text is None:
                return None
            ends, variables, thinking_key = data.eot_tokens or [], data.chat_template_kwargs, spec.template_thinking_key
            return ChatTemplate(text, tokenizer, ends, variables, thinking_key, for_tools=for_tools)

        self._default, self._tool_use = made(texts.default, False), made(texts.tool_use, True)
        self.templates: list[ChatTemplate] = [one for one in (self._default, self._tool_use) if one]
        self.reader = reader or ConversationFormat(spec, data.default_system_message)
        self.roles = roles_to_train(spec, data)
        self.train_on_inputs = data.train_on_inputs
        self.eos_token = tokenizer.eos_token
        self.train_on_eos = spec.train_on_eos or data.train_on_eos or "turn"
        self.train_on_eot = spec.train_on_eot or data.train_on_eot or self.train_on_eos

    def __call__(self, record: Any) -> list[Draft]:
        """One draft, or several if the template leaves out of earlier turns what is to be trained in them."""
        return self.encode(self.reader.read(record))

    def encode(self, conversation: Conversation) -> list[Draft]:
        """The drafts of a conversation."""
        template = self._template(conversation.tools)
        messages, tools = fitted(conversation.messages, conversation.tools, template.text.render)
        conversation = replace(conversation, messages=messages, tools=tools)
        trained = [i for i in range(len(messages)) if self._is_trained(conversation, i)]
        every_end = {"all", "last"} & {self.train_on_eos, self.train_on_eot}
        wanted = list(range(len(messages))) if every_end else trained
        text, turns = template.turns(messages, tools, wanted)
        drafts = []
        ranges = self._ranges(text, turns, [i for i in trained if i in turns], conversation)
        if ranges or len(turns) == len(wanted):
            drafts.append([Piece(text, trained=ranges)])
        for i in trained:
            if i not in turns:
                drafts.append(self._alone(template, conversation, i))
        return drafts

    def _template(self, tools: list[dict] | None) -> ChatTemplate:
        """The one that transformers chooses."""
        template = self._tool_use if tools is not None and self._tool_use else self._default
        if template is None:
            raise RecordError(
                f"the tokenizer has no default chat template for it, only {', '.join(self._names)}: set chat_template "
                "to one of these names"
            )
        return template

    def _is_trained(self, conversation: Conversation, i: int) -> bool:
        own_word = conversation.train[i]
        if own_word is not None:
            return own_word
        # Where ranges are given, they say what is trained.
        roles = {conversation.roles[i], conversation.messages[i]["role"]}
        return conversation.details[i] is not None or self.train_on_inputs or bool(roles & self.roles)

    def _alone(self, template: ChatTemplate, conversation: Conversation, i: int) -> Draft:
        """The conversation up to turn i, in which only that turn is trained."""
        messages = conversation.messages[: i + 1]
        text, turns = template.turns(messages, conversation.tools, [i])
        if i not in turns:
            raise template.refused(messages, conversation.tools, i)
        return [Piece(text, trained=self._ranges(text, turns, [i], conversation))]

    def _ranges(
        self, text: str, turns: dict[int, Turn], trained: list[int], conversation: Conversation
    ) -> list[tuple[int, int]]:
        ranges = []
        last = max((i for i, turn in turns.items() if turn.end), default=None)
        for i, turn in turns.items():
            body, end = (turn.start, turn.stop), turn.end
            if end and end[0] < turn.stop:
                body = (turn.start, end[0])
                rest = (end[1], turn.stop)  # what a template marks behind the end token, such as a newline
            else:
                rest = (turn.stop, turn.stop)
            detail = conversation.details[i]
            if i in trained:
                if detail is None:
                    ranges.append(body)
                    ranges += [rest] if end and self._trains_end(text[slice(*end)], i in trained, i == last) else []
                else:
                    ranges += _detailed(text, body, detail, conversation.messages[i], i)
            ranges += [one for one in turn.ends if self._trains_end(text[slice(*one)], i in trained, i == last)]
        return sorted(span for span in ranges if span[0] < span[1])

    @property
    def stops(self) -> list[str]:
        """What ends an assistant's last turn and is trained, token by token."""
        stops = [token for template in self.templates for token in template.stops]
        return [token for token in dict.fromkeys(stops) if self._trains_end(token, True, True)]

    def _trains_end(self, token: str, turn_is_trained: bool, is_last: bool) -> bool:
        policy = self.train_on_eos if token == self.eos_token else self.train_on_eot
        return {"all": True, "turn": turn_is_trained, "last": is_last, "none": False}[policy]


def _detailed(
    text: str, body: tuple[int, int], detail: list[tuple[int, int]], message: dict, i: int
) -> list[tuple[int, int]]:
    at = text.find(message["content"], *body) if isinstance(message["content"], str) else -1
    if at < 0:
        raise RecordError(
            f"message {i}: character ranges are given, but the chat template changes the message's text, so that they "
            "cannot be found in it"
        )
    return [(at + start, at + stop) for start, stop in detail]


def _check_end_tokens(eot_tokens: list[str], tokenizer: Any) -> None:
    for token in eot_tokens:
        if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
            raise DataError(
                f"eot_tokens: {token!r} is not one token of this tokenizer; add it with tokens: [{token!r}]"
            )
