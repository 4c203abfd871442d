"""Which characters of a rendered conversation are which turn.

The whole conversation is rendered once and tokenized as it is. The turns are then found *in that text*, never by
rendering or tokenizing a part, so that the tokens are those the model will see. In this order:

1. A template that marks what the model writes ({% generation %}) says it itself.
2. The same conversation is rendered with a placeholder for every message. The text between the placeholders is the
   template's; put the messages back in and it must give the rendered text exactly.
3. For templates that change what is in a message (tool calls, reasoning), one message at a time is replaced by a
   placeholder: what differs is that message. Where the template refuses that (a tool's answer without a call), the
   turn is what the text grows by from the generation prompt before it to its end, if both are beginnings of the text.

What a template drops from a turn (the reasoning of earlier turns, in Qwen3's) cannot be trained in this text. Such a
turn is trained in a text of its own, which ends with it, as the model would have been asked for it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from allranks.data.conversations import THINKING_KEYS
from allranks.data.probe_calls import PROBE_TOOLS, probe_calls
from allranks.data.records import RecordError, excerpt
from allranks.data.template_text import TemplateText
from allranks.data.written import function_of, has_parts, is_written, not_written, spellings


@dataclass(frozen=True)
class Turn:
    """Character ranges of one message in the rendered text.

    [start, stop): what the model would write (for an assistant, all that follows the generation prompt).
    end: the token that ends the turn, if there is one; inside [start, stop) or right after it.
    further: tokens that the template writes right behind that one, to end the turn as well.
    """

    start: int
    stop: int
    end: tuple[int, int] | None
    further: tuple[tuple[int, int], ...] = ()

    @property
    def ends(self) -> list[tuple[int, int]]:
        return [self.end, *self.further] if self.end else []


class ChatTemplate:
    """A Jinja chat template with the special tokens of a tokenizer, and further `variables` of the user's."""

    def __init__(
        self,
        template: str,
        tokenizer: Any,
        eot_tokens: Iterable[str] = (),
        variables: Mapping[str, Any] | None = None,
        thinking_key: str | None = None,
        *,
        for_tools: bool = False,
    ):
        self.text = TemplateText(template, tokenizer, eot_tokens, variables, for_tools=for_tools)
        self._asked_ends = tuple(eot_tokens)
        self._thinking_keys = tuple(dict.fromkeys((*THINKING_KEYS, *([thinking_key] if thinking_key else []))))
        self._literals: dict[tuple, list[str] | None] = {}
        self._writes_tools = False

    def turns(self, messages: list[dict], tools: list[dict] | None, wanted: list[int]) -> tuple[str, dict[int, Turn]]:
        """The text of the conversation and the turns of the `wanted` messages.

        A wanted message that the template writes without some of its text is missing from the result.
        Errors: `RecordError` if the template refuses the conversation, or its turns cannot be found.
        """
        text, generated = self.text.render_marked(messages, tools, False)
        if tools:
            self._check_tools(messages, tools, text)
        for i, message in enumerate(messages):
            # What the assistant said itself, templates may drop from history; what it is asked must be in the text.
            if message["role"] != "assistant" and self._lacks(text, message):
                raise self.refused(messages, tools, i)
        turns: dict[int, Turn] = {}
        holding: dict[int, str] = {}  # the text in which all of a message must be found
        assistants = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(generated) == len(assistants):
            marked = dict(zip(assistants, generated, strict=True))
            turns = {i: self._marked(text, *marked[i]) for i in wanted if i in marked}
            holding = {i: text[turn.start : turn.stop] for i, turn in turns.items()}
        rest = [i for i in wanted if i not in turns or self._lacks(holding[i], messages[i])]
        spans = self._by_placeholders(text, messages, tools) if rest else None
        for i in rest:
            turn = self._turn(text, messages, spans, i) if spans else self._search(text, messages, tools, i)
            holding[i] = text[turn.start : turn.stop]
            if i not in turns:
                turns[i] = _limited(turn, generated) if i in assistants and self.text.marks_generation else turn
        found = {i: turns[i] for i in wanted if not self._lacks(holding[i], messages[i])}
        return self._stopped(text, messages, found)

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """What ends an assistant's last turn, token by token, and then what ends one of calls where that is another
        token; () where nothing does, or the template refuses such turns."""
        question = [{"role": "user", "content": "a question"}]
        answer = self._ends_of([*question, {"role": "assistant", "content": "an answer"}], self.text.no_tools)[1]
        system = [{"role": "system", "content": "what to do"}]  # where some templates write tools
        for calls, before in product(probe_calls(), ([], system)) if answer else ():
            called = {"role": "assistant", "content": "", "tool_calls": calls}
            text, ends = self._ends_of([*before, *question, called], PROBE_TOOLS)
            if text:
                # What is there for each call ends no turn.
                return tuple(dict.fromkeys((*answer, *(end for end in ends[-1:] if text.count(end) == 1))))
        return answer

    def _ends_of(self, messages: list[dict], tools: list[dict] | None) -> tuple[str, tuple[str, ...]]:
        """The text and the end tokens of the last message; empty where the template does not write it."""
        last = len(messages) - 1
        try:
            text, turns = self.turns(messages, tools, [last])
        except RecordError:
            return "", ()
        turn = turns.get(last)
        return (text[turn.start :], tuple(text[slice(*end)] for end in turn.ends)) if turn else ("", ())

    def _stopped(self, text: str, messages: list[dict], turns: dict[int, Turn]) -> tuple[str, dict[int, Turn]]:
        """With the next header behind a last turn that nothing ends, where eot_tokens names that as the stop."""
        last = len(messages) - 1
        turn, stop = turns.get(last), self.text.header_as_stop if self._asked_ends else None
        if turn is None or turn.ends or stop not in self._asked_ends or messages[last]["role"] != "assistant":
            return text, turns
        assert stop is not None
        end = (len(text), len(text) + len(stop))
        return text + stop, {**turns, last: Turn(turn.start, end[0], end)}

    def _lacks(self, span: str, message: dict) -> str | None:
        return not_written(message, span, self._thinking_keys)

    def refused(self, messages: list[dict], tools: Any, i: int) -> RecordError:
        """The error for a message that the template does not write in full even as the last one."""
        lacking = self._lacks(self.text.render(messages[: i + 1], tools), messages[i])
        lacking = lacking or f"a part of {excerpt(messages[i].get('content'))}"
        return RecordError(
            f"message {i} ({messages[i]['role']}): the chat template leaves out {lacking}, or changes it; use a "
            "template that writes it"
        )

    def _by_placeholders(self, text: str, messages: list[dict], tools: Any) -> dict[int, tuple[int, int]] | None:
        if not all(self._is_plain(message) for message in messages):
            return None
        kinds = tuple(m["role"] if len(m) == 2 else repr({**m, "content": ""}) for m in messages)
        key = (kinds, repr(tools))
        if key not in self._literals:
            if len(self._literals) > 1000:  # tools differ from record to record; do not keep them all
                self._literals.clear()
            self._literals[key] = self.text.around(messages, tools)
        literals = self._literals[key]
        if literals is None or not text.startswith(literals[0]):
            return None
        spans, at = {}, len(literals[0])
        for i, message in enumerate(messages):
            rest = literals[i + 1]
            written = next((form for form in spellings(message["content"]) if text.startswith(form + rest, at)), None)
            if written is None:
                return None
            spans[i] = (at, at + len(written))
            at += len(written) + len(rest)
        return spans if at == len(text) else None

    def _is_plain(self, message: dict) -> bool:
        """Whether a text is all that the message says."""
        if message["role"] == "assistant":  # whatever else it has, a template may write behind the text
            return isinstance(message.get("content"), str) and len(message) == 2
        return isinstance(message.get("content"), str) and not any(map(message.get, self._thinking_keys))

    def _search(self, text: str, messages: list[dict], tools: Any, i: int) -> Turn:
        # The message before bounds the header; a tool's answer may be written into the turn that called it.
        neighbours = [i - 1] if i else []
        if i + 1 < len(messages) and messages[i + 1]["role"] == "tool":
            neighbours.append(i + 1)
        try:
            spans = {j: self._by_difference(text, messages, tools, j) for j in (i, *neighbours)}
            return self._turn(text, messages, spans, i)
        except RecordError:
            turn = self._by_growth(text, messages, tools, i)
            if turn is None:
                raise
            return turn

    def _by_growth(self, text: str, messages: list[dict], tools: Any, i: int) -> Turn | None:
        if messages[i]["role"] != "assistant":
            return None
        asked = self.text.render(messages[:i], tools, prompt=True)
        answered = self.text.render(messages[: i + 1], tools)
        if not (text.startswith(answered) and answered.startswith(asked)):
            return None
        return self._marked(text, len(asked), len(answered.rstrip()))

    def _by_difference(self, text: str, messages: list[dict], tools: Any, i: int) -> tuple[int, int]:
        placeholder, message = f"\ue000{i}\ue001", messages[i]
        # An assistant's other properties are its own words, such as calls; a tool's say which call it answers.
        kept = (
            ("role",) if message["role"] == "assistant" else [key for key in message if key not in self._thinking_keys]
        )
        beside = {key: message[key] for key in kept}
        content = [{"type": "text", "text": placeholder}] if has_parts(message) else placeholder
        blank = [*messages[:i], beside | {"content": content}, *messages[i + 1 :]]
        other = self.text.render(blank, tools)
        at = other.find(placeholder)
        start = _common_prefix(text, other)
        tail = _common_prefix(text[start:][::-1], other[start:][::-1])
        # A text in the place of an object may have quotation marks around it.
        quotes = other[start:at], other[at + len(placeholder) : len(other) - tail]
        is_there = start <= at and at + len(placeholder) <= len(other) - tail
        if not is_there or quotes not in (("", ""), ('"', '"'), ("'", "'")):
            raise RecordError(
                f"message {i} ({messages[i]['role']}): cannot tell which part of the chat template's text comes from "
                "it; use a template that marks what is trained with {% generation %}"
            )
        return start, len(text) - tail

    def _turn(self, text: str, messages: list[dict], spans: dict[int, tuple[int, int]], i: int) -> Turn:
        start, stop = spans[i]
        if i + 1 in spans and spans[i + 1][0] < stop:
            raise RecordError(
                f"message {i + 1} ({messages[i + 1]['role']}): the chat template writes it into the turn before it; "
                "use a template that marks what is trained with {% generation %}"
            )
        if messages[i]["role"] == "assistant" and self.text.prompt:
            # All that follows the generation prompt is the model's to write, such as an opening <think>.
            header = text.rfind(self.text.prompt, spans[i - 1][1] if i else 0, start)
            start = header + len(self.text.prompt) if header >= 0 else start
        elif messages[i]["role"] == "assistant" and text.endswith(self.text.lead, 0, start):
            start -= len(self.text.lead)
        end = self._end_after(text, stop)
        # White space before the end token ("answer </s>") has to be written as well.
        return Turn(start, end[0] if end else stop, end, self._further(text, end))

    def _further(self, text: str, end: tuple[int, int] | None) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        at = end[1] if end else 0
        for token in self.text.tail[1:] if end and text[slice(*end)] in self.text.tail[:1] else ():
            if not text.startswith(token, at):
                break
            found.append((at, at + len(token)))
            at += len(token)
        return tuple(found)

    def _marked(self, text: str, start: int, stop: int) -> Turn:
        trimmed = len(text[start:stop].rstrip()) + start
        for token in sorted((*self.text.ends, self.text.end_text), key=len, reverse=True):
            if token and text.endswith(token, start, trimmed):
                return Turn(start, stop, (trimmed - len(token), trimmed))
        end = None if text[stop:].strip() == "" else self._end_after(text, stop)
        return Turn(start, stop, end, self._further(text, end))

    def _end_after(self, text: str, at: int) -> tuple[int, int] | None:
        while text.startswith(" ", at):
            at += 1
        candidates = [token for token in self.text.ends if text.startswith(token, at)]
        token = max(candidates, key=len, default=self.text.end_text)
        opens_turn = self.text.prompt.lstrip().startswith(token) if token else True
        if not token or opens_turn or not text.startswith(token, at):
            return None
        return at, at + len(token)

    def _check_tools(self, messages: list[dict], tools: list[dict], text: str) -> None:
        if not self._writes_tools:  # it may write them only in some conversations
            try:
                self._writes_tools = self.text.render(messages, self.text.no_tools) != text
            except RecordError:
                self._writes_tools = True  # it cannot do without them
        names = [str(function_of(tool).get("name")) for tool in tools]
        unnamed = [name for name in names if not (self._writes_tools and is_written(name, text))]
        if unnamed:
            raise RecordError(
                f"tools: the record has tools, but the chat template does not write them ({', '.join(unnamed)}); use "
                "the template of a model that calls tools (tokenizer_default) or chatml"
            )


def _limited(turn: Turn, generated: list[tuple[int, int]]) -> Turn:
    """A turn of a template that marks only some turns, or parts of them: no more than it marks."""
    inside = [(start, stop) for start, stop in generated if start < turn.stop and stop > turn.start]
    if not inside:
        return Turn(turn.stop, turn.stop, None)
    return Turn(max(turn.start, inside[0][0]), min(turn.stop, inside[-1][1]), turn.end, turn.further)


def _common_prefix(a: str, b: str) -> int:
    """Length of the common prefix, by halving: slices compare at C speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a.startswith(b[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low
